package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
)

const (
	// formatFile makes a directory a data directory. It is the last file of an archive, so that one that was cut
	// off is none.
	formatFile = "FORMAT"
	// lostAndFound is what a new ext4 volume is not empty of.
	lostAndFound = "lost+found"
)

// archiveCommand and extractCommand carry a snapshot out of a pod and into another: an image has no tar.
func archiveCommand() service.Command {
	return service.Command{
		Name: "archive", Summary: "SNAPSHOT_DIR: write a snapshot to standard output, as tar",
		Run: func(ctx context.Context, args []string, stdout, _ io.Writer) error {
			dir, err := oneDir("archive", "SNAPSHOT_DIR", args)
			if err != nil {
				return err
			}
			return archive(ctx, dir, stdout)
		},
	}
}

func extractCommand(stdin io.Reader) service.Command {
	return service.Command{
		Name: "extract", Summary: "DATA_DIR: fill an empty directory with the archive that comes on standard input",
		Run: func(ctx context.Context, args []string, stdout, _ io.Writer) error {
			dir, err := oneDir("extract", "DATA_DIR", args)
			if err != nil {
				return err
			}
			syscall.Umask(umask)
			n, err := extract(ctx, stdin, dir)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(stdout, "%d bytes in %s: the node that starts there adopts them, in a new incarnation\n", n, dir)
			return err
		},
	}
}

func oneDir(command, what string, args []string) (string, error) {
	if len(args) != 1 || args[0] == "" || args[0][0] == '-' {
		return "", service.WithExitCode(service.ExitUsage, fmt.Errorf("%s: one %s expected", command, what))
	}
	return args[0], nil
}

// archive writes the regular files below dir, FORMAT last.
func archive(ctx context.Context, dir string, to io.Writer) error {
	if _, err := os.Stat(filepath.Join(dir, formatFile)); err != nil {
		return service.WithExitCode(service.ExitUsage, fmt.Errorf("archive: %s is no snapshot: %w", dir, err))
	}
	if _, err := os.Stat(filepath.Join(dir, "IDENTITY")); err == nil {
		return service.WithExitCode(service.ExitUsage, fmt.Errorf("archive: %s is the data directory of a node, in use or once to be used again: archive a snapshot of it", dir))
	}
	w := tar.NewWriter(to)
	root := os.DirFS(dir)
	add := func(name string) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o660, ModTime: info.ModTime()}); err != nil {
			return err
		}
		_, err = io.CopyN(w, f, info.Size())
		return err
	}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() || name == formatFile || name == "LOCK": // the last is left by storage-node check
			return nil
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is no regular file", name)
		}
		return add(name)
	})
	if err == nil {
		err = add(formatFile)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("archive %s: %w", dir, err)
	}
	return nil
}

// extract fills dir, which holds no file, from an archive and returns how many bytes it has. When it fails, it
// removes what it made.
func extract(ctx context.Context, from io.Reader, dir string) (bytes int64, err error) {
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return 0, fmt.Errorf("extract: %w", err)
	}
	if err := holdsNothing(dir); err != nil {
		return 0, service.WithExitCode(service.ExitUsage, fmt.Errorf("extract: %w", err))
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("extract: %w", errors.Join(err, empty(dir)))
		}
	}()
	r := tar.NewReader(from)
	whole := false
	for {
		if ctx.Err() != nil {
			return bytes, ctx.Err()
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return bytes, fmt.Errorf("the archive is damaged or cut off: %w", err)
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) || whole {
			return bytes, fmt.Errorf("%q: this is no archive of storage-node archive", h.Name)
		}
		if whole = h.Name == formatFile; whole { // all before it must be on disk first
			if err := syncBelow(dir); err != nil {
				return bytes, err
			}
		}
		if err := write(filepath.Join(dir, h.Name), r); err != nil {
			return bytes, err
		}
		bytes += h.Size
	}
	if !whole {
		return bytes, errors.New("the archive is cut off: it does not end with FORMAT")
	}
	return bytes, vfs.SyncDir(vfs.OS, dir)
}

// write makes a file and the directories above it, with the rights that the group of a pod needs.
func write(name string, from io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o770); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o660)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, from); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return f.Sync()
}

// holdsNothing refuses a directory with a file in it: directories alone are what a volume may come with.
func holdsNothing(dir string) error {
	return below(dir, func(name string, isDir bool) error {
		if isDir {
			return nil
		}
		return fmt.Errorf("%s is not empty (%s): nothing is overwritten; move it away first", dir, name)
	})
}

// empty removes the files below a directory, and leaves the directories.
func empty(dir string) error {
	return below(dir, func(name string, isDir bool) error {
		if isDir {
			return nil
		}
		return os.Remove(name)
	})
}

// syncBelow makes the names in a directory and those below it durable.
func syncBelow(dir string) error {
	return below(dir, func(name string, isDir bool) error {
		if !isDir {
			return nil
		}
		return vfs.SyncDir(vfs.OS, name)
	})
}

// below calls do for a directory and all that is in it, but for what a new volume comes with.
func below(dir string, do func(name string, isDir bool) error) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == lostAndFound:
			return fs.SkipDir
		}
		return do(name, d.IsDir())
	})
}
