// Package supply says what the binaries are made of: bills of materials, and the dependencies that were chosen.
// It fetches nothing.
package supply

import (
	"debug/buildinfo"
	"fmt"
	"path/filepath"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// own is the prefix of our modules; they are released as one.
const own = "github.com/pairdb/pairdb"

// Bill makes the bill of materials of a Go binary, from what the linker wrote into it: the modules that are
// really in it, with the checksums by which they were fetched. The same binary gives the same bill. version is
// that of our modules.
func Bill(binary, version string) (*cdx.BOM, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, fmt.Errorf("bill of %s: %w", binary, err)
	}
	name := filepath.Base(binary)
	product := cdx.Component{
		BOMRef: "binary:" + name, Type: cdx.ComponentTypeApplication, Name: name, Version: version,
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
	}
	goroot := module("std", strings.TrimPrefix(info.GoVersion, "go"))
	parts, refs := []cdx.Component{goroot}, []string{goroot.BOMRef}
	for _, dep := range info.Deps {
		if dep.Path == own || strings.HasPrefix(dep.Path, own+"/") {
			continue // of the product itself
		}
		if dep.Replace != nil {
			dep = dep.Replace
		}
		part := module(dep.Path, dep.Version)
		part.Properties = &[]cdx.Property{{Name: "go:sum", Value: dep.Sum}}
		parts, refs = append(parts, part), append(refs, part.BOMRef)
	}
	bill := cdx.NewBOM()
	bill.Metadata = &cdx.Metadata{Component: &product}
	bill.Components = &parts
	bill.Dependencies = &[]cdx.Dependency{{Ref: product.BOMRef, Dependencies: &refs}}
	return bill, nil
}

func module(path, version string) cdx.Component {
	url := "pkg:golang/" + path + "@" + version
	return cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: url}
}
