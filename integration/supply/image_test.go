package supply

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
)

// entry is one of an archive.
type entry struct {
	name    string
	content string
	kind    byte
}

func archive(t *testing.T, entries ...entry) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o755, Size: int64(len(e.content))}
		if e.kind == tar.TypeSymlink {
			h.Linkname = "x"
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := w.Write([]byte(e.content))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.String()
}

// saved is an image as `docker save` writes it, its manifest at the end.
func saved(t *testing.T, config string, layers ...string) *bytes.Reader {
	t.Helper()
	all := []entry{{name: "blobs/", kind: tar.TypeDir}, {name: "blobs/config", content: config}}
	names := ""
	for i, layer := range layers {
		name := fmt.Sprintf("blobs/layer-%d", i)
		all = append(all, entry{name: name, content: layer})
		names += fmt.Sprintf(",%q", name)
	}
	all = append(all, entry{name: "manifest.json", content: `[{"Config":"blobs/config","RepoTags":["pairdb/compactor:v1"],"Layers":[` + names[min(1, len(names)):] + `]}]`})
	return bytes.NewReader([]byte(archive(t, all...)))
}

func digestOf(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

func TestBillOfAnImageNamesEveryFile(t *testing.T) {
	// Who scans images knows their ids, and has to find there what is in the binary and what somebody put beside it.
	const config = `{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":["sha256:aa","sha256:bb"]}}`
	binary, err := os.ReadFile(filepath.Join(podtest.Binaries(t), "compactor"))
	require.NoError(t, err)
	var second bytes.Buffer
	z := gzip.NewWriter(&second)
	_, err = z.Write([]byte(archive(t, entry{name: "etc/passwd", content: "somebody"})))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	image := saved(t, config, archive(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "./compactor", content: string(binary)}, entry{name: "etc/passwd", content: "x"}), second.String())
	bill, err := ImageBill(image, image.Size(), "host:5000/pairdb/compactor:v1")
	require.NoError(t, err)

	var text bytes.Buffer
	require.NoError(t, cdx.NewBOMEncoder(&text, cdx.BOMFileFormatJSON).Encode(bill))
	var read cdx.BOM
	require.NoError(t, cdx.NewBOMDecoder(bytes.NewReader(text.Bytes()), cdx.BOMFileFormatJSON).Decode(&read))
	whole := read.Metadata.Component
	require.Equal(t, cdx.ComponentTypeContainer, whole.Type)
	require.Equal(t, "host:5000/pairdb/compactor v1", whole.Name+" "+whole.Version)
	require.Equal(t, digestOf(config), (*whole.Hashes)[0].Value, "the id of the image")
	require.Equal(t, []cdx.Property{{Name: "image:architecture", Value: "linux/amd64"}, {Name: "image:layer", Value: "sha256:aa"}, {Name: "image:layer", Value: "sha256:bb"}}, *whole.Properties)

	alone, err := Bill(filepath.Join(podtest.Binaries(t), "compactor"), "v1")
	require.NoError(t, err)
	files, modules := map[string]string{}, []cdx.Component{}
	for _, c := range *read.Components {
		if c.Type == cdx.ComponentTypeLibrary {
			modules = append(modules, c)
			continue
		}
		files[(*c.Properties)[0].Value] = string(c.Type) + " " + (*c.Hashes)[0].Value
	}
	require.Equal(t, map[string]string{
		"/compactor": "application " + digestOf(string(binary)), "/etc/passwd": "file " + digestOf("somebody"),
	}, files)
	require.Equal(t, *alone.Components, modules)
	require.Equal(t, []string{"binary:compactor", "file:/etc/passwd"}, *(*read.Dependencies)[0].Dependencies)
	require.Equal(t, (*alone.Dependencies)[0], (*read.Dependencies)[1])
	again, err := ImageBill(image, image.Size(), "host:5000/pairdb/compactor:v1")
	require.NoError(t, err)
	require.Equal(t, bill, again)

	// What can't be told for certain is no bill.
	for says, image := range map[string]*bytes.Reader{
		"neither a directory nor a file": saved(t, config, archive(t, entry{name: "l", kind: tar.TypeSymlink})),
		"layer below":                    saved(t, config, archive(t, entry{name: "etc/.wh.passwd"})),
		"configuration":                  saved(t, "nothing"),
		"it has no manifest.json":        bytes.NewReader([]byte(archive(t))),
		"0 images":                       bytes.NewReader([]byte(archive(t, entry{name: "manifest.json", content: "[]"}))),
		"it has no c":                    bytes.NewReader([]byte(archive(t, entry{name: "manifest.json", content: `[{"Config":"c"}]`}))),
		"invalid tar header":             bytes.NewReader(bytes.Repeat([]byte("x"), 1024)),
	} {
		_, err := ImageBill(image, image.Size(), "pairdb/compactor:v1")
		require.ErrorContains(t, err, says)
	}
	_, err = ImageBill(image, image.Size(), "compactor")
	require.ErrorContains(t, err, "NAME:VERSION")
}
