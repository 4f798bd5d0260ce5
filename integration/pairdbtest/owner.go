package pairdbtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/shirou/gopsutil/v4/process"
	"github.com/testcontainers/testcontainers-go"
)

// ownerLabel is on all that a process makes in Docker; its value says which process: host/pid/start, the last
// in milliseconds since 1970. Other processes of the machine can see by it whether the owner lives.
const ownerLabel = "pairdb.pairdbtest.owner"

// self is this process as an owner.
var self = sync.OnceValues(func() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	started, err := startOf(os.Getpid())
	if err != nil {
		return "", fmt.Errorf("when this process was started: %w", err)
	}
	return fmt.Sprintf("%s/%d/%d", host, os.Getpid(), started), nil
})

func startOf(pid int) (int64, error) {
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		return 0, err
	}
	return p.CreateTime()
}

// labels are those of all that this process makes. Run has seen that they can be had.
func labels() map[string]string {
	owner, _ := self()
	return map[string]string{ownerLabel: owner}
}

// startTolerance is how far two readings of one process's start may be apart, in milliseconds: it is derived
// from the time at which the machine was started, which moves when its clock is set.
const startTolerance = 2000

// isDead reports whether an owner has ended for sure. One of another machine is not known to have.
func isDead(owner string) bool {
	mine, err := self()
	if err != nil {
		return false
	}
	host, _, _ := strings.Cut(mine, "/")
	parts := strings.Split(owner, "/")
	if len(parts) != 3 || parts[0] != host {
		return false
	}
	pid, err1 := strconv.Atoi(parts[1])
	started, err2 := strconv.ParseInt(parts[2], 10, 64)
	if err1 != nil || err2 != nil {
		return false
	}
	now, err := startOf(pid)
	if errors.Is(err, process.ErrorProcessNotRunning) {
		return true
	}
	return err == nil && (now-started > startTolerance || started-now > startTolerance)
}

// sweepOnce sweeps at the first start of a process.
var sweepOnce = func() func(context.Context) error {
	var mu sync.Mutex
	var done bool
	return func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return nil
		}
		if _, err := self(); err != nil {
			return err
		}
		_, err := Sweep(ctx)
		done = err == nil
		return err
	}
}()

// Sweep removes the containers, networks, volumes and images that processes of this machine have made by this
// package and that have died before they could remove them. It returns their names. Run sweeps by itself.
func Sweep(ctx context.Context) ([]string, error) {
	return remove(ctx, func(t thing) bool { return isDead(t.owner) })
}

// Left returns the containers, networks and volumes that this process has made and that are still there: none
// after each Cluster was terminated.
func Left(ctx context.Context) ([]string, error) {
	mine, err := self()
	if err != nil {
		return nil, err
	}
	return owned(ctx, func(t thing) bool { return t.owner == mine && t.kind != image })
}

// owned returns the names of some of what has an owner.
func owned(ctx context.Context, which func(thing) bool) ([]string, error) {
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return nil, err
	}
	defer docker.Close()
	things, err := list(ctx, docker.Client)
	var names []string
	for _, t := range things {
		if which(t) {
			names = append(names, t.String())
		}
	}
	return names, err
}

// remove removes some of what has an owner, and returns the names.
func remove(ctx context.Context, which func(thing) bool) ([]string, error) {
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return nil, err
	}
	defer docker.Close()
	things, err := list(ctx, docker.Client)
	if err != nil {
		return nil, err
	}
	var names []string
	var errs []error
	for _, t := range things {
		if !which(t) {
			continue
		}
		// Another process may remove the same at the same time.
		if err := t.remove(ctx); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			errs = append(errs, fmt.Errorf("%s: %w", t, err))
			continue
		}
		names = append(names, t.String())
	}
	return names, errors.Join(errs...)
}

// image is the kind of what outlives the clusters of a process.
const image = "image"

// thing is something in Docker that has an owner.
type thing struct {
	kind, name, owner string
	remove            func(context.Context) error
}

func (t thing) String() string { return t.kind + " " + t.name }

// list returns all that has an owner, what has to be removed first in front.
func list(ctx context.Context, docker *client.Client) ([]thing, error) {
	var all []thing
	add := func(kind, name string, labels map[string]string, remove func(context.Context) error) {
		all = append(all, thing{kind: kind, name: name, owner: labels[ownerLabel], remove: remove})
	}
	owned := client.Filters{}.Add("label", ownerLabel)
	containers, err := docker.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: owned})
	if err != nil {
		return nil, err
	}
	for _, c := range containers.Items {
		add("container", c.ID, c.Labels, func(ctx context.Context) error {
			_, err := docker.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			return err
		})
	}
	networks, err := docker.NetworkList(ctx, client.NetworkListOptions{Filters: owned})
	if err != nil {
		return nil, err
	}
	for _, n := range networks.Items {
		add("network", n.Name, n.Labels, func(ctx context.Context) error {
			_, err := docker.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{})
			return err
		})
	}
	volumes, err := docker.VolumeList(ctx, client.VolumeListOptions{Filters: owned})
	if err != nil {
		return nil, err
	}
	for _, v := range volumes.Items {
		add("volume", v.Name, v.Labels, func(ctx context.Context) error {
			_, err := docker.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{})
			return err
		})
	}
	images, err := docker.ImageList(ctx, client.ImageListOptions{Filters: owned})
	if err != nil {
		return nil, err
	}
	for _, i := range images.Items {
		add(image, strings.Join(i.RepoTags, ","), i.Labels, func(ctx context.Context) error {
			_, err := docker.ImageRemove(ctx, i.ID, client.ImageRemoveOptions{Force: true, PruneChildren: true})
			return err
		})
	}
	return all, nil
}
