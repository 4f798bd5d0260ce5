// Command sbom writes the bill of materials of each binary, as CycloneDX, to a directory: NAME.cdx.json.
//
//	sbom VERSION DIRECTORY BINARY…
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/pairdb/pairdb/integration/supply"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "sbom VERSION DIRECTORY BINARY…")
		os.Exit(2)
	}
	for _, binary := range os.Args[3:] {
		if err := write(os.Args[1], os.Args[2], binary); err != nil {
			fmt.Fprintln(os.Stderr, "sbom:", err)
			os.Exit(1)
		}
	}
}

func write(version, dir, binary string) (err error) {
	bill, err := supply.Bill(binary, version)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := filepath.Join(dir, filepath.Base(binary)+".cdx.json")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bill); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	fmt.Println(name)
	return nil
}
