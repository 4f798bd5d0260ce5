// Package report turns measurements into tables and charts. It measures nothing and reads no clock:
// the same result gives the same bytes.
package report
