// Writes quantities with the answers of k8s.io/apimachinery: one case a line, the text as JSON, a tab, and the answer:
// the bytes of Quantity.Value; "invalid" where ParseQuantity refuses; "negative"; or "too large" where the quantity is
// above the largest int64, where Value is 0 or wraps.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/rand"
	"os"
	"regexp"
	"strings"

	"gopkg.in/inf.v0"
	"k8s.io/apimachinery/pkg/api/resource"
)

var suffixes = []string{
	"", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
}

// Kubernetes writes out such powers of ten in many cases, which takes minutes.
var tooSlow = regexp.MustCompile("[eE][+-]?0*[1-9][0-9]{3,17}($|[^0-9])")

func main() {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	seen := map[string]bool{}
	write := func(text string) {
		if seen[text] || tooSlow.MatchString(text) {
			return
		}
		seen[text] = true
		quoted, err := json.Marshal(text)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(out, "%s\t%s\n", quoted, answer(text))
	}

	for _, text := range byHand() {
		write(text)
	}
	// A fixed seed: the same cases at each run.
	random := rand.New(rand.NewSource(1))
	for range 6000 {
		write(number(random) + suffix(random))
	}
	for range 1500 {
		write(damage(random, number(random)+suffix(random)))
	}
	for range 1000 {
		write(pick(random, 12, "0123456789.+-eEinumkKMGTP"))
	}
}

func answer(text string) string {
	quantity, err := resource.ParseQuantity(text)
	if err != nil {
		return "invalid"
	}
	if quantity.Sign() < 0 {
		return "negative"
	}
	value := quantity.Value()
	// By exact arithmetic and not by Value: only then a sum that wrapped is known as one.
	if decimal := quantity.DeepCopy(); exceedsInt64(decimal.AsDec()) {
		return "too large"
	}
	return fmt.Sprint(value)
}

func exceedsInt64(amount *inf.Dec) bool {
	switch {
	case amount.Sign() == 0:
		return false
	case amount.Scale() < -100:
		return true // with a hundred zeros at its end: not to be written out
	}
	return amount.Cmp(inf.NewDecBig(big.NewInt(math.MaxInt64), 0)) > 0
}

// byHand returns the edges: every suffix with small numbers and with those around the largest int64.
func byHand() []string {
	texts := []string{"", " ", "1 ", " 1", "1\n", "abc", "0x10", "1,5", "1_0", "é", "1é", "1.5.5", "--1", "+-1", "1+5", "1-5"}
	for _, number := range []string{
		"0", "00", "-0", "+0", "1", "+1", "-1", "01", "1.", ".1", "0.1", "1.0", "1.5", "0.5", "0.0000000001", "-0.0000000001",
		"1000", "1023", "1024", "999999999999999999", "1000000000000000000", "9223372036854775806", "9223372036854775807",
		"9223372036854775808", "9223372036854775806.1", "9223372036854775807.0", "9223372036854775807.1", "18446744073709551616",
		"7.9999999999999999999", "8", "8191.9999999999999", "8192", "8388608", "8589934592", "0.00000000000000000000001",
		"123456789012345678901234567890", "1.234567890123456789012345678901234567890", "0.9999999999999999999999999999999999",
	} {
		for _, suffix := range suffixes {
			texts = append(texts, number+suffix)
		}
		for _, suffix := range []string{
			"e", "E0", "e0", "e+0", "e-0", "e1", "E1", "e3", "e+3", "e-3", "e-9", "e-10", "e-30", "e18", "e19", "e40", "E-2",
			"e007", "e+", "e-", "e5.", "ee5", "Ee5", "e9223372036854775808", "K", "ki", "KI", "i", "g", "t", "p",
			"B", "GB", "GiB", "Gi5", "k5", "m-3", "Ein", "Mm",
		} {
			texts = append(texts, number+suffix)
		}
	}
	return texts
}

func number(random *rand.Rand) string {
	sign := []string{"", "", "", "", "", "", "+", "-"}[random.Intn(8)]
	whole := pick(random, 1+random.Intn(4), "0123456789")
	if random.Intn(3) == 0 {
		whole = pick(random, random.Intn(24), "0123456789")
	}
	switch random.Intn(4) {
	case 0:
		return sign + whole + "." + pick(random, random.Intn(5), "0123456789")
	case 1:
		return sign + whole + "." + pick(random, random.Intn(30), "000123456789")
	}
	return sign + whole
}

func suffix(random *rand.Rand) string {
	if random.Intn(4) == 0 {
		return fmt.Sprintf("%c%s%d", "eE"[random.Intn(2)], []string{"", "+", "-"}[random.Intn(3)], random.Intn(25))
	}
	return suffixes[random.Intn(len(suffixes))]
}

// damage replaces, removes or adds one character.
func damage(random *rand.Rand, text string) string {
	at := random.Intn(len(text) + 1)
	end := min(at+random.Intn(2), len(text))
	return text[:at] + pick(random, random.Intn(2), "0.+-eEinumkKMGTP xB") + text[end:]
}

func pick(random *rand.Rand, count int, letters string) string {
	var text strings.Builder
	for range count {
		text.WriteByte(letters[random.Intn(len(letters))])
	}
	return text.String()
}
