package service

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// probeTimeout bounds a probe when ctx does not: its answers come from memory.
const probeTimeout = 3 * time.Second

// maxProbeBytes bounds what is read of an answer: a health answer has a few hundred bytes.
const maxProbeBytes = 64 << 10

// ProbeCommand is the subcommand that asks an operations server for its health and says what it answered.
// Images have no shell and no curl; and Kubernetes keeps the answer to a probe over HTTP to itself, but
// shows what a command printed in the events of the pod.
func ProbeCommand() Command {
	return Command{
		Name: "probe", Summary: "URL: ask /ready, /health or /health/startup of an operations server; exit code 1 and the reasons when it is not",
		Run: runProbe,
	}
}

func runProbe(ctx context.Context, args []string, stdout, _ io.Writer) error {
	if len(args) != 1 {
		return WithExitCode(ExitUsage, fmt.Errorf("probe: %d arguments, wants one: http://127.0.0.1:PORT/ready", len(args)))
	}
	u, err := url.Parse(args[0])
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return WithExitCode(ExitUsage, fmt.Errorf("probe: %q is not http://HOST:PORT/PATH, nor https", args[0]))
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy of the environment
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "https" {
		if ip == nil || !ip.IsLoopback() {
			return WithExitCode(ExitUsage, fmt.Errorf("probe: %q: https is for this machine only (127.0.0.1): certificates are not checked", args[0]))
		}
		// What answers is the process next door, and all that is learned is whether it is well. The kubelet does the same.
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} //nolint:gosec // see above
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return WithExitCode(ExitUsage, fmt.Errorf("probe: %w", err))
	}
	client := &http.Client{Transport: transport}
	resp, err := client.Do(req)
	if err != nil {
		return WithExitCode(ExitUnreachable, fmt.Errorf("probe: %w", err))
	}
	defer resp.Body.Close() //nolint:errcheck // it was read as far as it is wanted
	var answer healthAnswer
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxProbeBytes)).Decode(&answer); err != nil || answer.Status == "" {
		return fmt.Errorf("probe: %s answers %s, and not as an operations server does", args[0], resp.Status)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", answer.Status, words(answer.Reasons))
	}
	text := answer.Status
	if len(answer.Degraded) > 0 {
		text += ", degraded: " + words(answer.Degraded)
	}
	_, err = fmt.Fprintln(stdout, text)
	return err
}

// words prints reasons in one line.
func words(reasons []Reason) string {
	parts := make([]string, len(reasons))
	for i, r := range reasons {
		parts[i] = r.Name
		if r.Detail != "" {
			parts[i] += " (" + r.Detail + ")"
		}
	}
	return strings.Join(parts, ", ")
}
