package journal

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
)

// after is what a node has after the first steps.
func after(steps int) map[string][]byte {
	there := map[string][]byte{}
	for n := range steps {
		for _, ch := range Step("w", n) {
			if ch.Value == nil {
				delete(there, ch.Key)
			} else {
				there[ch.Key] = ch.Value
			}
		}
	}
	return there
}

func done(steps int) []bool {
	acked := make([]bool, steps)
	for n := range acked {
		acked[n] = true
	}
	return acked
}

func TestJudgeSeesWhatIsWrong(t *testing.T) {
	// The campaigns are worth what their judge is worth.
	const steps = 99 // the last one is under way: a batch
	require.NoError(t, Judge("w", done(steps), after(steps)))
	require.NoError(t, Judge("w", done(steps), after(steps+1)), "what was under way may be there")
	require.Error(t, Judge("w", done(steps+2), after(steps+1)))

	batch, deleted := Step("w", steps), Step("w", 94)
	require.Greater(t, len(batch), 2)
	require.Nil(t, deleted[0].Value)
	for what, change := range map[string]func(there map[string][]byte){
		"is lost":                      func(there map[string][]byte) { delete(there, Step("w", 90)[0].Key) },
		"another value":                func(there map[string][]byte) { there[Step("w", 90)[0].Key] = []byte("x") },
		"is back":                      func(there map[string][]byte) { there[deleted[0].Key] = Step("w", 91)[0].Value },
		"never written":                func(there map[string][]byte) { there["w/x"] = nil },
		"half of the batch of step 99": func(there map[string][]byte) { there[batch[0].Key] = batch[0].Value },
	} {
		there := maps.Clone(after(steps))
		change(there)
		require.ErrorContains(t, Judge("w", done(steps), there), what)
	}

	// A step that failed and may have happened, with others behind it.
	acked := done(steps)
	acked[50] = false
	require.NoError(t, Judge("w", acked, after(steps)))
	without := after(steps)
	delete(without, Step("w", 50)[0].Key)
	require.NoError(t, Judge("w", acked, without))
}
