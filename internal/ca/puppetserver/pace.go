package puppetserver

import "time"

// pace is what batches took, the latest counting most: a line through their
// sizes and times. A call costs much by itself, as the server reads, signs and
// writes the whole CRL, and something for each name; only the latter
// is a reason for small batches.
type pace struct {
	weight, names, took, squares, products float64

	fixed float64 // seconds of a call by itself, when that could last be told
	known bool
}

func (p *pace) note(names int, took time.Duration) {
	const fade = 0.7
	n, t := float64(names), took.Seconds()
	p.weight = fade*p.weight + 1
	p.names = fade*p.names + n
	p.took = fade*p.took + t
	p.squares = fade*p.squares + n*n
	p.products = fade*p.products + n*t
}

// each returns the seconds that one name more takes, false while the batches
// were always too much alike to tell.
func (p *pace) each() (float64, bool) {
	n, t := p.names/p.weight, p.took/p.weight
	if spread := p.squares/p.weight - n*n; spread >= n*n/16 {
		each := max(0, (p.products/p.weight-n*t)/spread)
		p.fixed, p.known = max(0, t-each*n), true
		return each, true
	}
	return max(0, (t-p.fixed)/n), p.known
}

// adapt fits the size of the next batch to how long this one took: its names
// shall take no longer than BatchTime, beside what the call takes by itself.
func (a *Authority) adapt(names int, took time.Duration) {
	a.pace.note(names, took)
	limit := a.opts.BatchTime.Seconds()
	fits := 2 * names
	switch each, known := a.pace.each(); {
	case known && each*float64(fits) > limit:
		fits = max(1, int(limit/each))
	case !known && took.Seconds() > 2*limit:
		fits = max(2, names/2) // one of them is long: another size tells which
	}
	if names < a.batch && fits >= 2*names {
		return // it was too small to tell
	}
	a.batch = min(fits, maxBatch)
}
