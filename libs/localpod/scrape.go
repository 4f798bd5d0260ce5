package localpod

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// ScrapeFile is the name of the file in the directory of the pods that tells Prometheus where their
// metrics are.
const ScrapeFile = "prometheus.json"

// ScrapeTarget is an entry of a file for Prometheus' file_sd_configs.
type ScrapeTarget struct {
	// Targets are addresses, host:port, whose /metrics has the metrics.
	Targets []string `json:"targets"`
	// Labels are job, the name of the binary, and node_id; of secure pods also __scheme__.
	Labels map[string]string `json:"labels"`
}

// ScrapeTargets returns where the processes of all pods show their metrics.
func (p *Pods) ScrapeTargets() []ScrapeTarget {
	var all []ScrapeTarget
	for _, pod := range p.All() {
		for _, t := range []struct {
			job, addr string
			process   *Process
		}{
			{StorageNode, pod.OpsAddr, pod.Node},
			{Compactor, pod.CompactorOpsAddr, pod.Compactor},
			{Migrator, pod.MigratorOpsAddr, pod.Migrator},
			{HealthAgent, pod.HealthOpsAddr, pod.HealthAgent},
		} {
			if t.process != nil {
				labels := map[string]string{"job": t.job, "node_id": pod.Name}
				if p.security != nil {
					labels["__scheme__"] = "https"
				}
				all = append(all, ScrapeTarget{[]string{t.addr}, labels})
			}
		}
	}
	return all
}

// WriteScrapeFile writes ScrapeFile. A Prometheus that watches it never sees half of it.
func (p *Pods) WriteScrapeFile() error {
	b, err := json.MarshalIndent(p.ScrapeTargets(), "", "  ")
	if err != nil {
		return fmt.Errorf("targets for Prometheus: %w", err)
	}
	name := filepath.Join(p.options.Dir, ScrapeFile)
	if err := os.WriteFile(name+".new", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("targets for Prometheus: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("targets for Prometheus: %w", err)
	}
	return nil
}
