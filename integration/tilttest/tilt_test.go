// Package tilttest executes the Tiltfile with recording stubs of Tilt's functions, and looks whether all that
// it mentions is there. It never deploys anything.
package tilttest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// signatures are Tilt's functions as its reference has them: each argument with its type, "?" where it may be
// left out. cmd is a string or a list of strings, strs as well. Those that the Tiltfile does not use are left
// out: calling one is an error here, and its signature has to be looked up first.
var signatures = map[string]string{
	"allow_k8s_contexts": "contexts:strs",
	"custom_build": "ref:str command:cmd deps:list tag?:str disable_push?:bool skips_local_docker?:bool live_update?:list " +
		"match_in_env_vars?:bool ignore?:strs entrypoint?:cmd command_bat_val?:str outputs_image_ref_to?:str command_bat?:cmd " +
		"image_deps?:list env?:dict dir?:str",
	"decode_yaml_stream": "yaml:text",
	"encode_yaml":        "obj:any",
	"encode_yaml_stream": "objs:list",
	"fail":               "msg:str",
	"http_get_action":    "port:int host?:str scheme?:str path?:str",
	"k8s_context":        "",
	"k8s_resource": "workload?:str new_name?:str port_forwards?:any extra_pod_selectors?:any trigger_mode?:mode resource_deps?:list " +
		"objects?:list auto_init?:bool pod_readiness?:str links?:any labels?:strs discovery_strategy?:str",
	"k8s_yaml":  "yaml:any allow_duplicates?:bool",
	"kustomize": "pathToDir:str kustomize_bin?:str flags?:list",
	"link":      "url:str name?:str",
	"listdir":   "directory:str recursive?:bool",
	"local":     "command:cmd quiet?:bool command_bat?:cmd echo_off?:bool env?:dict dir?:str stdin?:text",
	"local_resource": "name:str cmd:cmd deps?:strs trigger_mode?:mode resource_deps?:list ignore?:strs auto_init?:bool serve_cmd?:cmd " +
		"cmd_bat?:cmd serve_cmd_bat?:cmd allow_parallel?:bool links?:any labels?:strs env?:dict serve_env?:dict readiness_probe?:probe " +
		"dir?:str serve_dir?:str",
	"port_forward": "local_port:int container_port?:int name?:str link_path?:str host?:str",
	"probe": "initial_delay_secs?:int timeout_secs?:int period_secs?:int success_threshold?:int failure_threshold?:int " +
		"exec?:any http_get?:http_get_action tcp_socket?:any",
	"read_file":            "file_path:str default?:str",
	"version_settings":     "check_updates?:bool constraint?:str",
	"config.define_bool":   "name:str args?:bool usage?:str",
	"config.define_string": "name:str args?:bool usage?:str",
	"config.parse":         "",
	"os.getenv":            "key:str default?:any",
	"os.path.basename":     "path:str",
}

// call is one call of a function: its arguments by name, those that were given.
type call struct {
	function string
	args     map[string]starlark.Value
}

func (c call) str(arg string) string {
	s, _ := starlark.AsString(c.args[arg])
	return s
}

// strings returns an argument that is a string or a list of strings.
func (c call) strings(arg string) []string { return stringsOf(c.args[arg]) }

// is reports whether a flag is set; unless it is given, it is the default.
func (c call) is(arg string, without bool) bool {
	if v, ok := c.args[arg]; ok {
		return bool(v.Truth())
	}
	return without
}

// values returns an argument that is a value or a list of values.
func (c call) values(arg string) []starlark.Value {
	switch v := c.args[arg].(type) {
	case nil:
		return nil
	case *starlark.List:
		var out []starlark.Value
		for i := range v.Len() {
			out = append(out, v.Index(i))
		}
		return out
	default:
		return []starlark.Value{v}
	}
}

func stringsOf(v starlark.Value) []string {
	switch v := v.(type) {
	case starlark.String:
		return []string{string(v)}
	case *starlark.List:
		var out []string
		for i := range v.Len() {
			s, _ := starlark.AsString(v.Index(i))
			out = append(out, s)
		}
		return out
	}
	return nil
}

// tilt is one execution of the Tiltfile.
type tilt struct {
	root, context string
	settings      map[string]starlark.Value // of the command line
	replaced      map[string]string         // file below root → its text, instead of the file's

	calls   []call
	objects []object
	defined map[string]string // settings: name → type
	modules map[string]starlark.StringDict
}

// object is one of Kubernetes.
type object = map[string]any

// run executes the Tiltfile.
func (t *tilt) run() error {
	t.defined, t.modules = map[string]string{}, map[string]starlark.StringDict{}
	_, err := t.load(filepath.Join(t.root, "Tiltfile"))
	var e *starlark.EvalError
	if errors.As(err, &e) {
		return fmt.Errorf("%w\n%s", err, e.Backtrace())
	}
	return err
}

// load executes a file once.
func (t *tilt) load(path string) (starlark.StringDict, error) {
	if m, ok := t.modules[path]; ok {
		return m, nil
	}
	rel, err := filepath.Rel(t.root, path)
	if err != nil {
		return nil, err
	}
	text, ok := t.replaced[rel]
	if !ok {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	thread := &starlark.Thread{
		Name: rel,
		Load: func(_ *starlark.Thread, module string) (starlark.StringDict, error) {
			if strings.Contains(module, "://") {
				return nil, fmt.Errorf("load(%q): extensions need a network", module)
			}
			return t.load(filepath.Join(filepath.Dir(path), module))
		},
	}
	// As Tilt has it: statements at the top, and names that are assigned again.
	m, err := starlark.ExecFileOptions(&syntax.FileOptions{TopLevelControl: true, GlobalReassign: true}, thread, path, text, t.predeclared())
	t.modules[path] = m
	return m, err
}

func (t *tilt) predeclared() starlark.StringDict {
	all := starlark.StringDict{
		"TRIGGER_MODE_AUTO":   mark("mode:auto"),
		"TRIGGER_MODE_MANUAL": mark("mode:manual"),
	}
	modules := map[string]starlark.StringDict{"config": {"main_dir": starlark.String(t.root)}, "os": {}, "os.path": {}}
	for name, signature := range signatures {
		module, member := "", name
		if i := strings.LastIndexByte(name, '.'); i > 0 {
			module, member = name[:i], name[i+1:]
		}
		b := starlark.NewBuiltin(name, func(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			c, err := bind(name, signature, args, kwargs)
			if err != nil {
				return nil, err
			}
			return t.do(c)
		})
		if module == "" {
			all[member] = b
		} else {
			modules[module][member] = b
		}
	}
	modules["os"]["path"] = &starlarkstruct.Module{Name: "os.path", Members: modules["os.path"]}
	all["config"] = &starlarkstruct.Module{Name: "config", Members: modules["config"]}
	all["os"] = &starlarkstruct.Module{Name: "os", Members: modules["os"]}
	return all
}

// bind gives the arguments of a call their names, as strictly as Tilt does.
func bind(function, signature string, args starlark.Tuple, kwargs []starlark.Tuple) (call, error) {
	c := call{function: function, args: map[string]starlark.Value{}}
	kinds := map[string]string{}
	var pairs []any
	values := map[string]*starlark.Value{}
	for _, parameter := range strings.Fields(signature) {
		name, kind, _ := strings.Cut(parameter, ":")
		v := new(starlark.Value)
		pairs = append(pairs, name, v)
		name = strings.TrimSuffix(name, "?")
		values[name], kinds[name] = v, kind
	}
	if err := starlark.UnpackArgs(function, args, kwargs, pairs...); err != nil {
		return c, err
	}
	for name, v := range values {
		if *v == nil {
			continue
		}
		if !fits(*v, kinds[name]) {
			return c, fmt.Errorf("%s: %s is %s, not %s", function, name, (*v).Type(), kinds[name])
		}
		c.args[name] = *v
	}
	return c, nil
}

func fits(v starlark.Value, kind string) bool {
	list := func() bool {
		l, ok := v.(*starlark.List)
		for i := 0; ok && i < l.Len(); i++ {
			_, ok = l.Index(i).(starlark.String)
		}
		return ok
	}
	switch kind {
	case "any":
		return true
	case "str":
		return v.Type() == "string"
	case "strs", "cmd":
		return v.Type() == "string" || list()
	case "text":
		return v.Type() == "string" || v.Type() == "blob"
	case "list":
		return v.Type() == "list"
	case "mode":
		return strings.HasPrefix(v.Type(), "mode:")
	case "probe", "http_get_action":
		s, ok := v.(*starlarkstruct.Struct)
		return ok && s.Constructor() == starlark.String(kind)
	}
	return v.Type() == kind
}

// do is what a function does: it is recorded, and returns what Tilt returns.
func (t *tilt) do(c call) (starlark.Value, error) {
	t.calls = append(t.calls, c)
	switch c.function {
	case "fail":
		return nil, errors.New(c.str("msg"))
	case "k8s_context":
		return starlark.String(t.context), nil
	case "link", "port_forward", "probe", "http_get_action":
		return starlarkstruct.FromStringDict(starlark.String(c.function), c.args), nil
	case "k8s_yaml":
		return starlark.None, t.add(c)
	case "kustomize":
		return rendered(c.str("pathToDir"))
	case "decode_yaml_stream":
		var list []starlark.Value
		objects, err := decode(textOf(c.args["yaml"]))
		for _, o := range objects {
			list = append(list, toStarlark(o))
		}
		return starlark.NewList(list), err
	case "encode_yaml":
		return encode(c.args["obj"])
	case "encode_yaml_stream":
		return encode(c.values("objs")...)
	case "listdir":
		entries, err := os.ReadDir(c.str("directory"))
		var list []starlark.Value
		for _, e := range entries {
			if !e.IsDir() {
				list = append(list, starlark.String(filepath.Join(c.str("directory"), e.Name())))
			}
		}
		return starlark.NewList(list), err
	case "read_file":
		b, err := os.ReadFile(c.str("file_path"))
		return blob(b), err
	case "local":
		text, err := output(c.str("dir"), c.strings("command")...)
		return blob(text), err
	case "os.getenv":
		return starlark.None, nil // of no variable: the test must not depend on the machine
	case "os.path.basename":
		return starlark.String(filepath.Base(c.str("path"))), nil
	case "config.define_bool", "config.define_string":
		t.defined[c.str("name")] = map[string]string{"config.define_bool": "bool", "config.define_string": "string"}[c.function]
	case "config.parse":
		d := starlark.NewDict(len(t.settings))
		for name, v := range t.settings {
			if t.defined[name] != v.Type() {
				return nil, fmt.Errorf("the setting --%s of type %s is not defined", name, v.Type())
			}
			if err := d.SetKey(starlark.String(name), v); err != nil {
				return nil, err
			}
		}
		return d, nil
	}
	return starlark.None, nil
}

// add takes what is given to k8s_yaml: paths and texts.
func (t *tilt) add(c call) error {
	for _, v := range c.values("yaml") {
		var text string
		switch v := v.(type) {
		case starlark.String:
			b, err := os.ReadFile(string(v))
			if err != nil {
				return err
			}
			text = string(b)
		case blob:
			text = string(v)
		default:
			return fmt.Errorf("k8s_yaml of %s", v.Type())
		}
		objects, err := decode(text)
		if err != nil {
			return err
		}
		t.objects = append(t.objects, objects...)
	}
	return nil
}

// of returns the calls of a function.
func (t *tilt) of(function string) []call {
	var out []call
	for _, c := range t.calls {
		if c.function == function {
			out = append(out, c)
		}
	}
	return out
}

// blob is Tilt's text that is no path.
type blob string

func (b blob) String() string        { return string(b) }
func (b blob) Type() string          { return "blob" }
func (b blob) Freeze()               {}
func (b blob) Truth() starlark.Bool  { return b != "" }
func (b blob) Hash() (uint32, error) { return starlark.String(b).Hash() }

func textOf(v starlark.Value) string {
	if b, ok := v.(blob); ok {
		return string(b)
	}
	s, _ := starlark.AsString(v)
	return s
}

// mark is a constant of Tilt, of a type of its own.
type mark string

func (m mark) String() string        { return string(m) }
func (m mark) Type() string          { return string(m) }
func (m mark) Freeze()               {}
func (m mark) Truth() starlark.Bool  { return true }
func (m mark) Hash() (uint32, error) { return starlark.String(m).Hash() }

// once has what was rendered, or run, before.
var once sync.Map

// cached returns what f has returned for this key.
func cached(key string, f func() (string, error)) (string, error) {
	v, _ := once.LoadOrStore(key, sync.OnceValues(f))
	return v.(func() (string, error))()
}

func rendered(dir string) (starlark.Value, error) {
	text, err := cached(dir, func() (string, error) {
		all, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
		if err != nil {
			return "", err
		}
		b, err := all.AsYaml()
		return string(b), err
	})
	return blob(text), err
}

// output runs a program, once in all executions: nothing changes between them.
func output(dir string, command ...string) (string, error) {
	return cached(strings.Join(append([]string{dir}, command...), " "), func() (string, error) {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir = dir
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		return string(out), err
	})
}

func decode(text string) ([]object, error) {
	var all []object
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var o object
		switch err := d.Decode(&o); {
		case err != nil && err.Error() == "EOF":
			return all, nil
		case err != nil:
			return nil, err
		case o != nil:
			all = append(all, o)
		}
	}
}

func encode(values ...starlark.Value) (starlark.Value, error) {
	var texts []string
	for _, v := range values {
		b, err := yaml.Marshal(fromStarlark(v))
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(b))
	}
	return blob(strings.Join(texts, "---\n")), nil
}

func toStarlark(v any) starlark.Value {
	switch v := v.(type) {
	case map[string]any:
		d := starlark.NewDict(len(v))
		for k, e := range v {
			_ = d.SetKey(starlark.String(k), toStarlark(e)) // strings can be keys
		}
		return d
	case []any:
		var list []starlark.Value
		for _, e := range v {
			list = append(list, toStarlark(e))
		}
		return starlark.NewList(list)
	case string:
		return starlark.String(v)
	case bool:
		return starlark.Bool(v)
	case int:
		return starlark.MakeInt(v)
	case float64:
		return starlark.Float(v)
	}
	return starlark.None
}

func fromStarlark(v starlark.Value) any {
	switch v := v.(type) {
	case *starlark.Dict:
		o := map[string]any{}
		for _, item := range v.Items() {
			key, _ := starlark.AsString(item[0])
			o[key] = fromStarlark(item[1])
		}
		return o
	case *starlark.List:
		list := []any{}
		for i := range v.Len() {
			list = append(list, fromStarlark(v.Index(i)))
		}
		return list
	case starlark.String:
		return string(v)
	case starlark.Bool:
		return bool(v)
	case starlark.Int:
		i, _ := v.Int64()
		return i
	case starlark.Float:
		return float64(v)
	}
	return nil
}
