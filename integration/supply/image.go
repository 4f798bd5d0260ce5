package supply

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// Our images have one file of 30 MB in one layer.
const (
	maxImageFiles     = 10_000
	maxImageFileBytes = 1 << 28
	maxLayers         = 128
)

// ImageBill makes the bill of materials of an image, NAME:VERSION, from what `docker save` writes of it: each file in it,
// and of Go binaries the modules. Its hash is the id of the image: the sum of its configuration, and so of all that it
// is. The same image gives the same bill.
func ImageBill(saved io.ReaderAt, size int64, tag string) (*cdx.BOM, error) {
	bill, err := imageBill(saved, size, tag)
	if err != nil {
		return nil, fmt.Errorf("bill of the image %s: %w", tag, err)
	}
	return bill, nil
}

func imageBill(saved io.ReaderAt, size int64, tag string) (*cdx.BOM, error) {
	colon := strings.LastIndexByte(tag, ':')
	if colon < 0 {
		return nil, errors.New("write NAME:VERSION")
	}
	name, version := tag[:colon], tag[colon+1:]
	image, err := openSaved(saved, size)
	if err != nil {
		return nil, err
	}
	properties := []cdx.Property{{Name: "image:architecture", Value: image.config.OS + "/" + image.config.Architecture}}
	for _, id := range image.config.RootFS.DiffIDs {
		properties = append(properties, cdx.Property{Name: "image:layer", Value: id})
	}
	container := cdx.Component{
		BOMRef: "image:" + name, Type: cdx.ComponentTypeContainer, Name: name, Version: version,
		Hashes: sum(image.id), Properties: &properties,
	}
	var direct, all []cdx.Component
	var dependencies []cdx.Dependency
	known := map[string]bool{}
	for _, file := range slices.Sorted(maps.Keys(image.files)) {
		content := image.files[file]
		product, parts, err := program(bytes.NewReader(content), path.Base(file), version)
		if err != nil { // no program of Go
			product, parts = cdx.Component{BOMRef: "file:" + file, Type: cdx.ComponentTypeFile, Name: file}, nil
		}
		digest := sha256.Sum256(content)
		product.Hashes = sum(hex.EncodeToString(digest[:]))
		product.Properties = &[]cdx.Property{{Name: "image:path", Value: file}}
		direct, all = append(direct, product), append(all, product)
		if len(parts) > 0 {
			dependencies = append(dependencies, needs(product, parts))
		}
		for _, p := range parts {
			if !known[p.BOMRef] {
				known[p.BOMRef] = true
				all = append(all, p)
			}
		}
	}
	bill := cdx.NewBOM()
	bill.Metadata = &cdx.Metadata{Component: &container}
	bill.Components = &all
	dependencies = slices.Insert(dependencies, 0, needs(container, direct))
	bill.Dependencies = &dependencies
	return bill, nil
}

func sum(digits string) *[]cdx.Hash {
	return &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: digits}}
}

// savedImage is what `docker save` wrote of one image.
type savedImage struct {
	id     string // without "sha256:"
	config struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	files map[string][]byte // by their paths in the image
}

func openSaved(saved io.ReaderAt, size int64) (*savedImage, error) {
	manifest, err := blob(saved, size, "manifest.json")
	if err != nil {
		return nil, err
	}
	var images []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(manifest, &images); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(images) != 1 || len(images[0].Layers) > maxLayers {
		return nil, fmt.Errorf("%d images, one expected, of %d layers at most", len(images), maxLayers)
	}
	config, err := blob(saved, size, images[0].Config)
	if err != nil {
		return nil, err
	}
	out := &savedImage{files: map[string][]byte{}}
	id := sha256.Sum256(config)
	out.id = hex.EncodeToString(id[:])
	if err := json.Unmarshal(config, &out.config); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	for _, name := range images[0].Layers {
		layer, err := blob(saved, size, name)
		if err != nil {
			return nil, err
		}
		if err := out.add(layer); err != nil {
			return nil, fmt.Errorf("layer %s: %w", name, err)
		}
	}
	return out, nil
}

// add puts the files of a layer over those below it.
func (i *savedImage) add(layer []byte) error {
	var r io.Reader = bytes.NewReader(layer)
	if bytes.HasPrefix(layer, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		r = z
	}
	return each(r, func(h *tar.Header, r io.Reader) error {
		name := path.Clean("/" + h.Name)
		switch {
		case strings.HasPrefix(path.Base(name), ".wh."):
			return fmt.Errorf("%s takes a file of a layer below away: such images are not read", name)
		case h.Typeflag == tar.TypeDir:
			return nil
		case h.Typeflag == tar.TypeReg && h.Size <= maxImageFileBytes && len(i.files) < maxImageFiles:
			content, err := io.ReadAll(r)
			i.files[name] = content
			return err
		}
		return fmt.Errorf("%s: neither a directory nor a file of %d bytes at most, or one of more than %d", name, maxImageFileBytes, maxImageFiles)
	})
}

// blob returns a file of a tar archive.
func blob(saved io.ReaderAt, size int64, name string) ([]byte, error) {
	var content []byte
	found := false
	err := each(io.NewSectionReader(saved, 0, size), func(h *tar.Header, r io.Reader) (err error) {
		if h.Name != name || h.Typeflag != tar.TypeReg {
			return nil
		}
		if h.Size > maxImageFileBytes {
			return fmt.Errorf("%s has %d bytes, at most %d are read", name, h.Size, maxImageFileBytes)
		}
		found = true
		content, err = io.ReadAll(r)
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("it has no %s", name)
	}
	return content, err
}

// each calls f for each entry of a tar archive.
func each(r io.Reader, f func(*tar.Header, io.Reader) error) error {
	archive := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := archive.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case n == maxImageFiles:
			return fmt.Errorf("more than %d entries", maxImageFiles)
		}
		if err := f(h, archive); err != nil {
			return err
		}
	}
}
