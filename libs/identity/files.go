package identity

import (
	"github.com/pairdb/pairdb/libs/service"
)

// Files names the files of a process. Embed it in a configuration. Either all are named or none: then
// connections are neither encrypted nor checked.
type Files struct {
	TLSCert string `envconfig:"PAIRDB_TLS_CERT" optional:"true" unit:"path" desc:"File with the certificate (PEM) of this process, followed by those between it and an authority; its URI says which role of which cluster it has. Read again when it changes. With PAIRDB_TLS_KEY and PAIRDB_TLS_CA every TCP port speaks TLS 1.3 and asks for a certificate; without, none does."`
	TLSKey  string `envconfig:"PAIRDB_TLS_KEY" optional:"true" unit:"path" desc:"File with the private key (PEM) of PAIRDB_TLS_CERT."`
	TLSCA   string `envconfig:"PAIRDB_TLS_CA" optional:"true" unit:"path" desc:"File with the authorities (PEM) that certificates of others are checked against: several while one is replaced."`
}

// Enabled reports whether the files are named.
func (c Files) Enabled() bool { return c.TLSCert != "" }

// CheckTLS adds what is wrong with the configuration to p. It opens no file.
func (c Files) CheckTLS(p *service.Problems) {
	for _, f := range []struct{ key, value string }{
		{"PAIRDB_TLS_CERT", c.TLSCert}, {"PAIRDB_TLS_KEY", c.TLSKey}, {"PAIRDB_TLS_CA", c.TLSCA},
	} {
		if f.value == "" && (c.TLSCert != "" || c.TLSKey != "" || c.TLSCA != "") {
			p.Addf(f.key, "is not set, and others of PAIRDB_TLS_CERT, PAIRDB_TLS_KEY and PAIRDB_TLS_CA are: set all three, or none for connections without TLS")
		}
	}
}
