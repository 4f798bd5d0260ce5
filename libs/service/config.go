package service

import (
	"encoding"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// Field is one key of a configuration.
type Field struct {
	// Key is the name of the environment variable.
	Key string
	// Default is the text of the value that an unset key has.
	Default string
	// Unit says what the value is: "bytes", "duration", "address"…
	Unit string
	// Description is one sentence.
	Description string
	// Required keys have no default and must be set; optional ones have none and may be empty.
	Required, Optional bool

	value reflect.Value
}

// Value returns the text of the current value, as the environment would have it.
func (f Field) Value() string {
	if m, ok := f.value.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	if f.value.Kind() == reflect.Slice {
		parts := make([]string, f.value.Len())
		for i := range parts {
			parts[i] = fmt.Sprint(f.value.Index(i).Interface())
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(f.value.Interface())
}

// Fields returns the keys of a configuration, a pointer to a struct, in the order of the struct;
// embedded structs are walked. A field without a key, a description or a decision about its default
// is an error of the programmer.
func Fields(config any) ([]Field, error) {
	v := reflect.ValueOf(config)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("configuration is a %T, a pointer to a struct expected", config)
	}
	return structFields(v.Elem())
}

func structFields(v reflect.Value) ([]Field, error) {
	var fields []Field
	for i := range v.NumField() {
		t := v.Type().Field(i)
		if t.Anonymous {
			embedded, err := structFields(v.Field(i))
			if err != nil {
				return nil, err
			}
			fields = append(fields, embedded...)
			continue
		}
		def, hasDefault := t.Tag.Lookup("default")
		f := Field{
			Key: t.Tag.Get("envconfig"), Default: def, Unit: t.Tag.Get("unit"), Description: t.Tag.Get("desc"),
			Required: t.Tag.Get("required") == "true", Optional: t.Tag.Get("optional") == "true", value: v.Field(i),
		}
		decided := 0
		for _, b := range []bool{hasDefault && def != "", f.Required, f.Optional} {
			if b {
				decided++
			}
		}
		if !strings.HasPrefix(f.Key, Prefix) || f.Unit == "" || f.Description == "" || decided != 1 {
			return nil, fmt.Errorf("field %s of %s: wants envconfig:%q, desc, unit, and one of default, required, optional", t.Name, v.Type(), Prefix+"…")
		}
		fields = append(fields, f)
	}
	return fields, nil
}

// Completer is a configuration that derives some values from others, or from the machine, after
// parsing and before validation.
type Completer interface{ Complete() error }

// Validator is a configuration that checks its own values. All problems are reported together.
type Validator interface{ Validate() error }

// Load fills a configuration from the environment of the process: unknown PAIRDB_ keys are refused,
// then defaults and values are parsed, then Validate is asked.
func Load(config any) error {
	fields, err := Fields(config)
	if err != nil {
		return err
	}
	own := make([]string, len(fields))
	for i, f := range fields {
		own[i] = f.Key
	}
	if errs := UnknownKeys(os.Environ(), own); len(errs) > 0 {
		return errors.Join(errs...)
	}
	if err := envconfig.Process("", config); err != nil {
		return parseProblem(err)
	}
	if c, ok := config.(Completer); ok {
		if err := c.Complete(); err != nil {
			return err
		}
	}
	if v, ok := config.(Validator); ok {
		return v.Validate()
	}
	return nil
}

// parseProblem says in one line which key could not be parsed.
func parseProblem(err error) error {
	var p *envconfig.ParseError
	if !errors.As(err, &p) {
		return err
	}
	return fmt.Errorf("%s=%q: %w", p.KeyName, p.Value, p.Err)
}

// Problems collects what is wrong with a configuration.
type Problems struct{ errs []error }

// Addf adds a problem of a key.
func (p *Problems) Addf(key, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(key+": "+format, args...))
}

// Err returns all problems as one error, or nil.
func (p *Problems) Err() error { return errors.Join(p.errs...) }

// Bytes checks low <= value <= high.
func (p *Problems) Bytes(key string, value, low, high Bytes) {
	if value < low || value > high {
		p.Addf(key, "%s is outside of %s to %s", value, low, high)
	}
}

// Int checks low <= value <= high.
func (p *Problems) Int(key string, value, low, high int) {
	if value < low || value > high {
		p.Addf(key, "%d is outside of %d to %d", value, low, high)
	}
}

// Duration checks low <= value <= high.
func (p *Problems) Duration(key string, value, low, high time.Duration) {
	if value < low || value > high {
		p.Addf(key, "%s is outside of %s to %s", value, low, high)
	}
}

// OneOf checks that value is one of the allowed words.
func (p *Problems) OneOf(key, value string, allowed ...string) {
	for _, a := range allowed {
		if value == a {
			return
		}
	}
	p.Addf(key, "%q is none of %s", value, strings.Join(allowed, ", "))
}

// Address checks that value is host:port, :port, or host:0 for any free port.
func (p *Problems) Address(key, value string) {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		p.Addf(key, "%q is not an address: write host:port or :port", value)
	}
}
