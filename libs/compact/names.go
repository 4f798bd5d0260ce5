package compact

import "fmt"

// The names under a data directory that node and worker must agree on. Only numbers travel on the
// wire; both sides make the names.
const (
	// TableDir holds the tables of the tree; workers have it read-only.
	TableDir = "sst"
	// StagingDir holds one directory for each attempt of a job.
	StagingDir = "staging"
)

// TableName is the file name of table number in TableDir.
func TableName(number uint64) string { return fmt.Sprintf("%06d.sst", number) }

// AttemptName is the name of an attempt's directory in StagingDir.
func AttemptName(id uint64, epoch uint32) string { return fmt.Sprintf("%06d.e%d", id, epoch) }

// OutputName is the file name of an output, counted from 1, in the attempt's directory.
func OutputName(index int) string { return fmt.Sprintf("%04d.sst", index) }
