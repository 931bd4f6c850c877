package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"time"

	"hercules/internal/agent"
	"hercules/internal/atomicfile"
	"hercules/internal/config"
	"hercules/internal/coordinator/event"
)

// agentOptions are for the agent of one run.
type agentOptions struct {
	dir            string // its base directory, for this run alone
	url, joinToken string
	tasks          int // 0: as many as there are processors
	nix            string
	settings       map[string]string
	caches         string // binary-caches.json; empty: none
	log            *slog.Logger
}

// localAgent is an agent in this process.
type localAgent struct {
	// failed gets the error when the agent ends before it was stopped.
	failed chan error
	stop   func()
}

// startAgent starts an agent that works for the coordinator at o.url. It has connected when the coordinator says so.
func startAgent(ctx context.Context, o agentOptions) (*localAgent, error) {
	cfg, err := agentConfig(o)
	if err != nil {
		return nil, err
	}
	// The agent outlives an interrupt: it still has to tell how the cancelled tasks ended.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a := &localAgent{failed: make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := agent.Run(ctx, cfg, agent.Options{
			Log:        o.log,
			NixProgram: o.nix,
			// The coordinator is this process: asking it costs nothing, waiting does.
			Times: agent.Times{Poll: 20 * time.Millisecond, Batch: 20 * time.Millisecond},
		})
		if err == nil && ctx.Err() == nil {
			err = errors.New("the agent ended unexpectedly; --debug says more")
		}
		if err != nil {
			a.failed <- err
		}
	}()
	a.stop = func() {
		cancel()
		<-ended
	}
	return a, nil
}

// agentConfig writes the files that an agent wants and gives its configuration.
func agentConfig(o agentOptions) (*config.Config, error) {
	settings := map[string]string{
		// Nothing here stays long enough for a negative answer to grow old, and the agent insists.
		"narinfo-cache-negative-ttl": "0",
	}
	maps.Copy(settings, o.settings)
	document := map[string]any{
		"baseDirectory": o.dir,
		"apiBaseUrl":    o.url,
		"nixSettings":   settings,
	}
	if o.tasks > 0 {
		document["concurrentTasks"] = o.tasks
	}
	text, err := json.Marshal(document)
	if err != nil {
		return nil, err
	}
	cfg, err := config.Parse("the configuration of the local agent.json", text, func(string) string { return "" })
	if err != nil {
		return nil, err
	}
	for path, text := range map[string]string{
		cfg.ClusterJoinTokenPath: o.joinToken,
		cfg.BinaryCachesPath:     or(o.caches, "{}"),
	} {
		if err := writeSecret(path, text); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

func writeSecret(path, text string) error {
	if err := mkdirPrivate(filepath.Dir(path)); err != nil {
		return err
	}
	return atomicfile.Write(path, []byte(text), 0o600)
}

// awaitAgent reads events until the agent has connected, and gives the platforms that it builds for.
func awaitAgent(ctx context.Context, a *localAgent, events <-chan event.Event) ([]string, error) {
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return nil, context.Cause(ctx)
			}
			if body, ok := e.Body.(event.AgentConnected); ok {
				return body.Platforms, nil
			}
		case err := <-a.failed:
			return nil, fmt.Errorf("starting the agent: %w", err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
