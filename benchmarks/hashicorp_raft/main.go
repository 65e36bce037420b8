// A node of hashicorp/raft with a client in it, told what to do as `child.py` is: lines of JSON in, lines of JSON out.
// It keeps its log in raft-boltdb, which syncs every commit. When its input ends, it ends.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/ioutil"
	"math/rand"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb"
)

const patience = 10 * time.Second

// Config is what the node is started with.
type Config struct {
	Path    string   `json:"path"`
	Address string   `json:"address"`
	Peers   []string `json:"peers"`
}

// Request is one job; the arguments are those of the methods of `child.Jobs`.
type Request struct {
	ID        int    `json:"id"`
	Job       string `json:"job"`
	Arguments struct {
		Threads    int     `json:"threads"`
		Seconds    float64 `json:"seconds"`
		ValueBytes int     `json:"value_bytes"`
		Keys       int     `json:"keys"`
	} `json:"arguments"`
}

type figures = map[string]interface{}

// store is the replicated state: a map.
type store struct {
	mutex sync.RWMutex
	items map[string][]byte
}

func (s *store) Apply(entry *raft.Log) interface{} {
	size := binary.BigEndian.Uint16(entry.Data)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.items[string(entry.Data[2:2+size])] = entry.Data[2+size:]
	return nil
}

func (s *store) get(key string) []byte {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.items[key]
}

type noSnapshot struct{}

func (noSnapshot) Persist(sink raft.SnapshotSink) error { return sink.Close() }
func (noSnapshot) Release()                             {}

func (s *store) Snapshot() (raft.FSMSnapshot, error) { return noSnapshot{}, nil }
func (s *store) Restore(io.ReadCloser) error         { return nil }

func open(config Config, state *store) (*raft.Raft, error) {
	if err := os.MkdirAll(config.Path, 0o700); err != nil {
		return nil, err
	}
	settings := raft.DefaultConfig()
	settings.LocalID = raft.ServerID(config.Address)
	settings.Logger = hclog.New(&hclog.LoggerOptions{Output: ioutil.Discard})
	settings.SnapshotThreshold = 1 << 40 // the state is small, and a snapshot would be measured as well
	disk, err := raftboltdb.NewBoltStore(filepath.Join(config.Path, "raft.db"))
	if err != nil {
		return nil, err
	}
	transport, err := raft.NewTCPTransport(config.Address, nil, 4, patience, ioutil.Discard)
	if err != nil {
		return nil, err
	}
	node, err := raft.NewRaft(settings, state, disk, disk, raft.NewDiscardSnapshotStore(), transport)
	if err != nil {
		return nil, err
	}
	var members raft.Configuration
	for _, address := range append(config.Peers, config.Address) {
		members.Servers = append(
			members.Servers, raft.Server{ID: raft.ServerID(address), Address: raft.ServerAddress(address)})
	}
	sort.Slice(members.Servers, func(i, j int) bool { return members.Servers[i].ID < members.Servers[j].ID })
	if err := node.BootstrapCluster(members).Error(); err != nil && err != raft.ErrCantBootstrap {
		return nil, err
	}
	return node, nil
}

func command(key string, value []byte) []byte {
	made := make([]byte, 2, 2+len(key)+len(value))
	binary.BigEndian.PutUint16(made, uint16(len(key)))
	return append(append(made, key...), value...)
}

// run is `measure.run_threads`: so many goroutines that do one thing again and again.
func run(request Request, operation func(key string) error) figures {
	arguments := request.Arguments
	if arguments.Keys == 0 {
		arguments.Keys = 1000
	}
	records := make([][]float64, arguments.Threads)
	failures := make([]error, arguments.Threads)
	var group sync.WaitGroup
	start := time.Now()
	deadline := start.Add(time.Duration(arguments.Seconds * float64(time.Second)))
	for number := range records {
		group.Add(1)
		go func(number int) {
			defer group.Done()
			draw := rand.New(rand.NewSource(int64(number)))
			for {
				key := fmt.Sprintf("key-%08d", draw.Intn(arguments.Keys))
				before := time.Now()
				if before.After(deadline) {
					return
				}
				if err := operation(key); err != nil {
					failures[number] = err
					return
				}
				records[number] = append(records[number], time.Since(before).Seconds()*1e3)
			}
		}(number)
	}
	group.Wait()
	took := time.Since(start).Seconds()
	var all []float64
	for _, record := range records {
		all = append(all, record...)
	}
	sort.Float64s(all)
	found := figures{"count": len(all), "per s": float64(len(all)) / took, "errors": 0, "error": nil}
	for name, share := range map[string]float64{"p50 ms": 0.5, "p99 ms": 0.99, "max ms": 1} {
		found[name] = 0.0
		if len(all) > 0 {
			found[name] = all[int(share*float64(len(all)-1))]
		}
	}
	for _, err := range failures {
		if err != nil {
			found["errors"], found["error"] = found["errors"].(int)+1, err.Error()
		}
	}
	return found
}

func perform(node *raft.Raft, state *store, request Request) (interface{}, error) {
	switch request.Job {
	case "status":
		var leader interface{}
		if address := node.Leader(); address != "" {
			leader = string(address)
		}
		return figures{"is_leader": node.State() == raft.Leader, "leader": leader, "term": node.Stats()["term"]}, nil
	case "writes":
		size := request.Arguments.ValueBytes
		if size == 0 {
			size = 100
		}
		value := make([]byte, size)
		rand.Read(value)
		return run(request, func(key string) error { return node.Apply(command(key, value), patience).Error() }), nil
	case "fill":
		for number := 0; number < 1000; number++ {
			key := fmt.Sprintf("key-%08d", number)
			if err := node.Apply(command(key, []byte("a short string")), patience).Error(); err != nil {
				return nil, err
			}
		}
		return nil, nil
	case "reads":
		return run(request, func(key string) error {
			err := node.VerifyLeader().Error()
			state.get(key)
			return err
		}), nil
	}
	return nil, fmt.Errorf("hashicorp/raft is not told to do %q here", request.Job)
}

func main() {
	var config Config
	state := &store{items: map[string][]byte{}}
	err := json.Unmarshal([]byte(os.Args[2]), &config)
	var node *raft.Raft
	if err == nil {
		node, err = open(config, state)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var mutex sync.Mutex
	say := func(message interface{}) {
		mutex.Lock()
		defer mutex.Unlock()
		if err := json.NewEncoder(os.Stdout).Encode(message); err != nil {
			os.Exit(1)
		}
	}
	say(figures{"opened": 0})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var request Request
		if err := json.Unmarshal(lines.Bytes(), &request); err != nil {
			os.Exit(1)
		}
		go func() {
			value, err := perform(node, state, request)
			if err != nil {
				say(figures{"id": request.ID, "error": err.Error()})
				return
			}
			say(figures{"id": request.ID, "value": value})
		}()
	}
}
