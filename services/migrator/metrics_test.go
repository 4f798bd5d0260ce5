package main

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	libcommand "github.com/pairdb/pairdb/libs/command"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/services/migrator/internal/command"
	"github.com/pairdb/pairdb/services/migrator/internal/migrator"
)

// Dashboards are written from this page: what it leaves out is not watched.
func TestMetricsPageIsWhatTheMigratorRegisters(t *testing.T) {
	r := service.NewRegistry("migrator")
	migrator.NewMetrics().Register(r)
	commands := libcommand.New(libcommand.Options{Kind: command.Kind, Log: slog.New(slog.DiscardHandler), Labels: prometheus.Labels{"node_id": "node-0"}})
	r.MustRegister(commands.Collector())
	r.MustRegister(identity.NewCollector(nil, nil))
	servicetest.Metrics(t, "migrator", r)
}
