package robustness

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/nemesis"
)

// A track record whose tests are gone protects from nothing.
func TestTrackRecordNamesTestsThatAreThere(t *testing.T) {
	page, err := os.ReadFile("README.md")
	require.NoError(t, err)
	names := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(page), -1)
	require.Greater(t, len(names), 10)
	for _, name := range names {
		err := exec.Command("grep", "-rqs", "--include=*_test.go", "func "+name[1]+"(", "../../libs", "../../services", "..").Run()
		require.NoError(t, err, "README.md names %s, which is not there", name[1])
	}
	testing, err := os.ReadFile("../../docs/TESTING.md")
	require.NoError(t, err)
	require.Contains(t, string(testing), "under "+strconv.Itoa(len(nemesis.Faults))+" kinds of faults")
}
