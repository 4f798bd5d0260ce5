// Command retime reads an image as `docker save` writes it and writes it as `docker load` reads it, with the time
// EPOCH (seconds since 1970) in place of that of its build and without what else a builder notes of its machine: so
// images of the same content have the same id.
//
//	docker save IMAGE | retime EPOCH TAG… | docker load
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "retime:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: docker save IMAGE | retime EPOCH TAG… | docker load")
	}
	seconds, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return fmt.Errorf("EPOCH: %w", err)
	}
	// Layers are read several times.
	file, err := os.CreateTemp("", "image-*.tar")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if _, err := io.Copy(file, in); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	image, err := tarball.ImageFromPath(file.Name(), nil)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	at := v1.Time{Time: time.Unix(seconds, 0).UTC()}
	config = config.DeepCopy()
	config.Created, config.Container, config.DockerVersion, config.Config.Hostname, config.Config.Image = at, "", "", "", ""
	for i := range config.History {
		config.History[i].Created = at
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	images := map[name.Tag]v1.Image{}
	for _, t := range args[1:] {
		tag, err := name.NewTag(t)
		if err != nil {
			return err
		}
		images[tag] = image
	}
	return tarball.MultiWrite(images, out)
}
