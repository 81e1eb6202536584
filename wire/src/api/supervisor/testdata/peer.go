// A peer in Go for the tests of ../tests.rs: the supervisor's messages with the tags of AWS Lambda's model.
//
// Prints `name<TAB>json` for values of its own, then what it reads on standard input in the same form, decoded (unknown
// members are errors) and encoded again.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

type domain struct {
	Domain string `json:"domain"`
}

type named struct {
	Name   string `json:"name"`
	Domain string `json:"domain"`
}

type kill struct {
	Name     string    `json:"name"`
	Domain   string    `json:"domain"`
	Deadline time.Time `json:"deadline"`
}

type stop struct {
	Domain   string    `json:"domain"`
	Deadline time.Time `json:"deadline"`
}

type drive struct {
	Type        string   `json:"type,omitempty"`
	Source      string   `json:"source,omitempty"`
	Destination string   `json:"destination,omitempty"`
	FsType      string   `json:"fs_type,omitempty"`
	Options     []string `json:"options,omitempty"`
	Chowner     []uint32 `json:"chowner,omitempty"`
	Chmode      uint32   `json:"chmode,omitempty"`
}

type caps struct {
	Ambient     []string `json:"ambient,omitempty"`
	Bounding    []string `json:"bounding,omitempty"`
	Effective   []string `json:"effective,omitempty"`
	Inheritable []string `json:"inheritable,omitempty"`
	Permitted   []string `json:"permitted,omitempty"`
}

type profile struct {
	CPULimit         float64 `json:"cpu_limit"`
	MemoryLimitBytes uint64  `json:"memory_limit_bytes"`
}

type profiles struct {
	Throttled   profile `json:"throttled"`
	Unthrottled profile `json:"unthrottled"`
}

type user struct {
	UID *uint32 `json:"uid"`
	GID *uint32 `json:"gid"`
}

type hook struct {
	Name string             `json:"name"`
	Path string             `json:"path"`
	Args []string           `json:"args,omitempty"`
	Env  *map[string]string `json:"envs"`
}

type configure struct {
	Domain   string    `json:"domain"`
	Mounts   []drive   `json:"mounts,omitempty"`
	Caps     *caps     `json:"capabilities,omitempty"`
	Filters  []string  `json:"seccomp_filters,omitempty"`
	Profiles *profiles `json:"cgroup_profiles,omitempty"`
	Start    string    `json:"start_profile,omitempty"`
	User     *user     `json:"exec_user,omitempty"`
	Hooks    []hook    `json:"additional_start_hooks,omitempty"`
}

type managed struct {
	Topic   string   `json:"topic"`
	Formats []string `json:"formats"`
}

type logging struct {
	Managed managed `json:"managed"`
}

type execute struct {
	Name    string             `json:"name"`
	Domain  string             `json:"domain"`
	Path    string             `json:"path"`
	Args    []string           `json:"args,omitempty"`
	Cwd     *string            `json:"cwd,omitempty"`
	Env     *map[string]string `json:"env,omitempty"`
	Logging logging            `json:"log_config"`
}

type data struct {
	Type   string  `json:"type"`
	Domain *string `json:"domain"`
	Name   *string `json:"name"`
	Cause  *string `json:"cause"`
	Signo  *int32  `json:"signo"`
	Status *int32  `json:"exit_status"`
	Size   *uint64 `json:"size"`
}

type event struct {
	Time  uint64 `json:"timestamp_millis"`
	Event data   `json:"event"`
}

type failure struct {
	Kind    string  `json:"error_kind"`
	Message *string `json:"message"`
}

type bytesOf struct {
	Received    uint64 `json:"received_bytes"`
	Transmitted uint64 `json:"transmitted_bytes"`
}

type cycle struct {
	DomainCPU  uint64             `json:"domain_cpu_run_ns"`
	Domain     uint64             `json:"domain_run_ns"`
	Service    uint64             `json:"service_cpu_run_ns"`
	Memory     uint64             `json:"domain_max_memory_usage_bytes"`
	Machine    uint64             `json:"microvm_cpu_run_ns"`
	Interfaces map[string]bytesOf `json:"microvm_network_interfaces"`
	Idle       uint64             `json:"idle_cpu_run_ns"`
}

type response struct {
	Metrics cycle `json:"cycle_delta_metrics"`
}

func text(s string) *string   { return &s }
func number(n uint32) *uint32 { return &n }
func signed(n int32) *int32   { return &n }
func long(n uint64) *uint64   { return &n }

func show(name string, value interface{}) {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\t%s\n", name, encoded)
}

func empty(name string) interface{} {
	switch name {
	case "domain":
		return &domain{}
	case "named":
		return &named{}
	case "kill":
		return &kill{}
	case "stop":
		return &stop{}
	case "configure":
		return &configure{}
	case "execute":
		return &execute{}
	case "event":
		return &event{}
	case "failure":
		return &failure{}
	case "response":
		return &response{}
	}
	panic(name)
}

func main() {
	at := time.Date(2026, 11, 28, 12, 0, 0, 120000000, time.FixedZone("", 5400))
	env := map[string]string{"b": "<2>", "a": "1"}
	none := map[string]string{}
	show("domain", domain{"d"})
	show("named", named{"p", "d"})
	show("kill", kill{"p", "d", at})
	show("kill", kill{"p", "d", at.UTC().Add(9)})
	show("kill", kill{})
	show("stop", stop{"d", at.UTC().Truncate(time.Second)})
	show("configure", configure{})
	show("configure", configure{
		Domain: "d",
		Mounts: []drive{
			{Type: "drive"},
			{"drive", "/dev/vdb", "/data", "ext4", []string{"ro", "noatime"}, []uint32{0, 993}, 0750},
			{Type: "bind", Source: "/a", Destination: "/b", Options: []string{"rbind"}},
		},
		Caps:     &caps{Bounding: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL", "CAP_CHOWN"}},
		Filters:  []string{"default"},
		Profiles: &profiles{profile{0.25, 1 << 40}, profile{2, 0}},
		Start:    "unthrottled",
		User:     &user{UID: number(993)},
		Hooks:    []hook{{Name: "h", Path: "/bin/h"}, {"i", "/bin/i", []string{"x"}, &env}, {Name: "j", Env: &none}},
	})
	show("configure", configure{Domain: "e", Caps: &caps{}, Profiles: &profiles{}, User: &user{}})
	show("execute", execute{})
	show("execute", execute{"p", "d", "/bin/p", []string{"-c", "a & b"}, text("/tmp"), &env,
		logging{managed{"runtime_extension", []string{"line", "message"}}}})
	show("execute", execute{Name: "q", Cwd: text(""), Env: &none, Logging: logging{managed{"runtime", []string{"line"}}}})
	show("event", event{1795867200123, data{Type: "process_termination", Domain: text("d"), Name: text("p"), Cause: text("exited"), Status: signed(3)}})
	show("event", event{1, data{Type: "process_termination", Domain: text("d"), Name: text("p"), Cause: text("signaled"), Signo: signed(9)}})
	show("event", event{2, data{Type: "event_loss", Size: long(1 << 40)}})
	show("failure", failure{"no_such_entity", text(`domain "d" does not exist`)})
	show("failure", failure{"serde", nil})
	show("response", response{cycle{1, 2, 3, 4, 5, map[string]bytesOf{"lo": {6, 7}, "eth0": {8, 9}}, 10}})

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		name, encoded, _ := strings.Cut(lines.Text(), "\t")
		value := empty(name)
		decoder := json.NewDecoder(bytes.NewBufferString(encoded))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(value); err != nil {
			panic(err)
		}
		show(name, value)
	}
}
