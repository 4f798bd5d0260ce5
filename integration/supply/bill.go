// Package supply says what binaries and images are made of: bills of materials, and the dependencies that were chosen.
// It fetches nothing.
package supply

import (
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
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
	f, err := os.Open(binary)
	if err != nil {
		return nil, fmt.Errorf("bill of a binary: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	product, parts, err := program(f, filepath.Base(binary), version)
	if err != nil {
		return nil, err
	}
	bill := cdx.NewBOM()
	bill.Metadata = &cdx.Metadata{Component: &product}
	bill.Components = &parts
	bill.Dependencies = &[]cdx.Dependency{needs(product, parts)}
	return bill, nil
}

// program returns what a Go binary is, and the modules in it. One of somebody else has the version that its module has.
func program(r io.ReaderAt, name, version string) (product cdx.Component, parts []cdx.Component, err error) {
	info, err := buildinfo.Read(r)
	if err != nil {
		return product, nil, fmt.Errorf("bill of %s: %w", name, err)
	}
	product = cdx.Component{BOMRef: "binary:" + name, Type: cdx.ComponentTypeApplication, Name: name, Version: version}
	if ours(info.Main.Path) {
		product.Licenses = &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}}
	} else {
		product.Version = info.Main.Version
		product.PackageURL = module(info.Main.Path, info.Main.Version).PackageURL
	}
	parts = append(parts, module("std", strings.TrimPrefix(info.GoVersion, "go")))
	for _, dep := range info.Deps {
		if ours(dep.Path) {
			continue // of the product itself
		}
		if dep.Replace != nil {
			dep = dep.Replace
		}
		part := module(dep.Path, dep.Version)
		part.Properties = &[]cdx.Property{{Name: "go:sum", Value: dep.Sum}}
		parts = append(parts, part)
	}
	return product, parts, nil
}

func ours(path string) bool { return path == own || strings.HasPrefix(path, own+"/") }

func needs(whole cdx.Component, parts []cdx.Component) cdx.Dependency {
	refs := make([]string, len(parts))
	for i, p := range parts {
		refs[i] = p.BOMRef
	}
	return cdx.Dependency{Ref: whole.BOMRef, Dependencies: &refs}
}

func module(path, version string) cdx.Component {
	url := "pkg:golang/" + path + "@" + version
	return cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: url}
}
