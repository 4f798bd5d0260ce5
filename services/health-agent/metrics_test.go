package main

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	libcommand "github.com/pairdb/pairdb/libs/command"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/services/health-agent/internal/agent"
	"github.com/pairdb/pairdb/services/health-agent/internal/command"
)

// Dashboards are written from this page: what it leaves out is not watched.
func TestMetricsPageIsWhatTheHealthAgentRegisters(t *testing.T) {
	r := service.NewRegistry("health-agent")
	agent.NewMetrics().Register(r, "node-0")
	commands := libcommand.New(libcommand.Options{Kind: command.Kind, Log: slog.New(slog.DiscardHandler), Labels: prometheus.Labels{"node_id": "node-0"}})
	r.MustRegister(commands.Collector())
	r.MustRegister(identity.NewCollector(nil, nil))
	servicetest.Metrics(t, "health-agent", r)
}
