package pairdbtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"

	"github.com/pairdb/pairdb/libs/localpod"
)

// Images are the names of the images of all containers.
type Images struct {
	// StorageNode, Compactor, Migrator and HealthAgent are the processes of a pod; their entry point is the
	// binary.
	StorageNode, Compactor, Migrator, HealthAgent string
	// NATS is a NATS server, whose entry point takes its flags.
	NATS string
	// Pause does nothing until it is told to end.
	Pause string
}

// Published returns the images pairdb/<binary> with a tag (that of a release, or what `make images` has
// given them), and public images of the rest.
func Published(tag string) Images {
	return Images{
		StorageNode: "pairdb/storage-node:" + tag, Compactor: "pairdb/compactor:" + tag,
		Migrator: "pairdb/migrator:" + tag, HealthAgent: "pairdb/health-agent:" + tag,
		NATS: "nats:2", Pause: "rancher/mirrored-pause:3.6",
	}
}

func (i Images) of(binary string) string {
	switch binary {
	case localpod.StorageNode:
		return i.StorageNode
	case localpod.Compactor:
		return i.Compactor
	case localpod.Migrator:
		return i.Migrator
	}
	return i.HealthAgent
}

// Programs are the paths of static programs for Linux.
type Programs struct {
	// Dir has the binaries of a pod, by their names.
	Dir string
	// NATS is a nats-server, Pause a program that does nothing until it is told to end.
	NATS, Pause string
}

// Build makes images of static programs and nothing else: for machines that can't pull images, and for
// binaries that were compiled a moment ago. RemoveImages removes them, or the next process when this one has
// died.
func Build(ctx context.Context, p Programs) (Images, error) {
	owner, err := self()
	if err != nil {
		return Images{}, fmt.Errorf("build images: %w", err)
	}
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return Images{}, fmt.Errorf("build images: %w", err)
	}
	defer docker.Close()
	var out Images
	for _, program := range []struct {
		image *string
		path  string
	}{
		{&out.StorageNode, filepath.Join(p.Dir, localpod.StorageNode)},
		{&out.Compactor, filepath.Join(p.Dir, localpod.Compactor)},
		{&out.Migrator, filepath.Join(p.Dir, localpod.Migrator)},
		{&out.HealthAgent, filepath.Join(p.Dir, localpod.HealthAgent)},
		{&out.NATS, p.NATS},
		{&out.Pause, p.Pause},
	} {
		// A name of this process alone: what others build is theirs.
		*program.image = fmt.Sprintf("pairdbtest/%s:%d", filepath.Base(program.path), os.Getpid())
		root, err := archiveOf(program.path)
		if err != nil {
			return Images{}, fmt.Errorf("build image %s: %w", *program.image, err)
		}
		// A Dockerfile comes to the same, step by step, and takes twelve times as long.
		made, err := docker.ImageImport(ctx, client.ImageImportSource{Source: root, SourceName: "-"}, *program.image, client.ImageImportOptions{
			Changes: []string{`ENTRYPOINT ["/program"]`, fmt.Sprintf("LABEL %s=%q", ownerLabel, owner)},
		})
		if err != nil {
			return Images{}, fmt.Errorf("build image %s: %w", *program.image, err)
		}
		said, err := io.ReadAll(made)
		if err := errors.Join(err, made.Close()); err != nil {
			return Images{}, fmt.Errorf("build image %s: %w", *program.image, err)
		}
		if bytes.Contains(said, []byte(`"error"`)) {
			return Images{}, fmt.Errorf("build image %s: %s", *program.image, said)
		}
	}
	return out, nil
}

// archiveOf is a root file system with one program.
func archiveOf(path string) (io.Reader, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "program", Mode: 0o755, Size: int64(len(content))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	return &b, w.Close()
}

// RemoveImages removes the images that Build has made in this process, once no container uses them.
func RemoveImages(ctx context.Context) error {
	mine, err := self()
	if err != nil {
		return err
	}
	_, err = remove(ctx, func(t thing) bool { return t.kind == image && t.owner == mine })
	return err
}
