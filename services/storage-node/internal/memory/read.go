package memory

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// Names below the root of the machine.
const (
	selfCgroup = "proc/self/cgroup"
	selfStatus = "proc/self/status"
	meminfo    = "proc/meminfo"
	mountV2    = "sys/fs/cgroup"
	mountV1    = "sys/fs/cgroup/memory"
)

// Reader reads memory. It keeps nothing between readings: limits of a container may change.
type Reader struct{ root fs.FS }

// NewReader returns a reader of a machine, the root of which is root.
func NewReader(root fs.FS) *Reader { return &Reader{root} }

// Read returns memory now.
func (r *Reader) Read() (Reading, error) {
	total, err := r.field(meminfo, "MemTotal:")
	if err != nil {
		return Reading{}, fmt.Errorf("memory of the machine: %w", err)
	}
	group, err := r.group()
	if err != nil {
		return Reading{}, fmt.Errorf("memory of the container: %w", err)
	}
	if group.Group && group.Limit < total<<10 {
		return group, nil
	}
	rss, err := r.field(selfStatus, "VmRSS:")
	if err != nil {
		return Reading{}, fmt.Errorf("memory of the process: %w", err)
	}
	return Reading{Used: rss << 10, Limit: total << 10}, nil
}

// group returns the memory of the process's cgroup; Group is false without one that has a limit.
func (r *Reader) group() (Reading, error) {
	v2, v1, err := r.paths()
	if err != nil {
		return Reading{}, err
	}
	if v1 != "" {
		if g, err := r.groupV1(v1); g.Group || err != nil {
			return g, err
		}
	}
	if v2 != "" {
		return r.groupV2(v2)
	}
	return Reading{}, nil
}

// paths returns the process's group in each hierarchy, "" where there is none. Its lines are
// id:controllers:path, with no controllers for v2.
func (r *Reader) paths() (v2, v1 string, err error) {
	b, err := fs.ReadFile(r.root, selfCgroup)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil // a kernel without cgroups
	}
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(parts) != 3:
		case parts[1] == "":
			v2 = parts[2]
		case strings.Contains(","+parts[1]+",", ",memory,"):
			v1 = parts[2]
		}
	}
	return v2, v1, nil
}

// groupV2 returns the group with the smallest limit from the process's one up.
func (r *Reader) groupV2(name string) (Reading, error) {
	var best Reading
	var at string
	for name = path.Clean("/" + name); ; name = path.Dir(name) {
		dir := path.Join(mountV2, name)
		// "max" is no limit. The root has no such file; nor has a path of another namespace, where the
		// group of the container is the root of the mount.
		limit, ok, err := r.number(path.Join(dir, "memory.max"))
		if err != nil {
			return Reading{}, err
		}
		if ok && (!best.Group || limit < best.Limit) {
			best, at = Reading{Limit: limit, Group: true}, dir
		}
		if name == "/" {
			break
		}
	}
	if !best.Group {
		return best, nil
	}
	used, ok, err := r.number(path.Join(at, "memory.current"))
	if err != nil || !ok {
		return Reading{}, errors.Join(err, fmt.Errorf("%s: no memory.current", at))
	}
	best.Used, err = r.withoutFiles(used, path.Join(at, "memory.stat"), "inactive_file", "active_file")
	return best, err
}

// groupV1 returns the process's group, or that at the root of the mount where its path is of another
// namespace.
func (r *Reader) groupV1(name string) (Reading, error) {
	for _, dir := range []string{path.Join(mountV1, path.Clean("/"+name)), mountV1} {
		limit, ok, err := r.number(path.Join(dir, "memory.limit_in_bytes"))
		if err != nil {
			return Reading{}, err
		}
		if !ok {
			continue
		}
		stat := path.Join(dir, "memory.stat")
		above, err := r.field(stat, "hierarchical_memory_limit")
		if err != nil {
			return Reading{}, err
		}
		if above > 0 {
			limit = min(limit, above)
		}
		used, ok, err := r.number(path.Join(dir, "memory.usage_in_bytes"))
		if err != nil || !ok {
			return Reading{}, errors.Join(err, fmt.Errorf("%s: no memory.usage_in_bytes", dir))
		}
		used, err = r.withoutFiles(used, stat, "total_inactive_file", "total_active_file")
		return Reading{Used: used, Limit: limit, Group: true}, err
	}
	return Reading{}, nil
}

// withoutFiles takes the named fields of a memory.stat off what is used.
func (r *Reader) withoutFiles(used uint64, stat string, names ...string) (uint64, error) {
	for _, name := range names {
		n, err := r.field(stat, name)
		if err != nil {
			return 0, err
		}
		used -= min(used, n)
	}
	return used, nil
}

// number reads a file of one number; ok is false if there is no such file or it says "max".
func (r *Reader) number(name string) (n uint64, ok bool, err error) {
	b, err := fs.ReadFile(r.root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	text := strings.TrimSpace(string(b))
	if text == "max" {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, false, fmt.Errorf("%s: %w", name, err)
	}
	return n, true, nil
}

// field returns the number behind a name in a file of lines, 0 if it is not there.
func (r *Reader) field(file, name string) (uint64, error) {
	b, err := fs.ReadFile(r.root, file)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != name {
			continue
		}
		n, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %s: %w", file, name, err)
		}
		return n, nil
	}
	return 0, lines.Err()
}
