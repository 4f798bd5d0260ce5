// Command sbom writes bills of materials, as CycloneDX, to a directory: of binaries NAME.cdx.json, of images that Docker
// has image-NAME.cdx.json.
//
//	sbom VERSION DIRECTORY BINARY…
//	sbom -images DIRECTORY NAME:VERSION…
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/pairdb/pairdb/integration/supply"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "sbom VERSION DIRECTORY BINARY… | sbom -images DIRECTORY NAME:VERSION…")
		os.Exit(2)
	}
	for _, what := range os.Args[3:] {
		if err := run(os.Args[1], os.Args[2], what); err != nil {
			fmt.Fprintln(os.Stderr, "sbom:", err)
			os.Exit(1)
		}
	}
}

func run(version, dir, what string) error {
	if version != "-images" {
		bill, err := supply.Bill(what, version)
		if err != nil {
			return err
		}
		return write(dir, filepath.Base(what), bill)
	}
	bill, err := ofImage(what)
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(path.Base(what), ":")
	return write(dir, "image-"+name, bill)
}

// ofImage reads an image out of Docker.
func ofImage(tag string) (_ *cdx.BOM, err error) {
	f, err := os.CreateTemp("", "image-*.tar")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	save := exec.Command("docker", "save", tag)
	save.Stdout, save.Stderr = f, os.Stderr
	if err := save.Run(); err != nil {
		return nil, fmt.Errorf("docker save %s: %w", tag, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return supply.ImageBill(f, info.Size(), tag)
}

func write(dir, name string, bill *cdx.BOM) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, name+".cdx.json")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bill); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	fmt.Println(file)
	return nil
}
