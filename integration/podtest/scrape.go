package podtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// Page returns what the endpoint of a process shows at /metrics.
func Page(ctx context.Context, opsAddr string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+opsAddr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return body, err
}

// Families returns the metrics of an endpoint by name.
func Families(ctx context.Context, opsAddr string) (map[string]*dto.MetricFamily, error) {
	body, err := Page(ctx, opsAddr)
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	return parser.TextToMetricFamilies(bytes.NewReader(body))
}

// Value returns the sum of a counter or gauge over its labels; one that is not shown fails the test.
func Value(t testing.TB, opsAddr, name string) (sum float64) {
	t.Helper()
	all, err := Families(t.Context(), opsAddr)
	require.NoError(t, err)
	require.Contains(t, all, name)
	for _, m := range all[name].GetMetric() {
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return sum
}
