package service

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version is the version of all binaries; the build sets it with -ldflags -X.
var Version = "dev"

// Build describes the running binary.
type Build struct {
	Version, Revision, Go, Platform string
}

// ThisBuild returns what is known about the running binary.
func ThisBuild() Build {
	b := Build{
		Version: Version, Revision: "unknown", Go: runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Revision = s.Value
		}
	}
	return b
}

// String prints the build in one line.
func (b Build) String() string {
	return fmt.Sprintf("%s (revision %s, %s, %s)", b.Version, b.Revision, b.Go, b.Platform)
}
