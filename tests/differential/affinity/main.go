// Writes node selectors with the answers of k8s.io/component-helpers. The output is JSON lines of two kinds. A node:
//
//	{"node":"name","labels":{…}}
//
// and a selector, as the API writes one, with the answer for each of the nodes above it, in their order, 1 for a match:
//
//	{"terms":[{"matchExpressions":[…],"matchFields":[…]}],"matches":"0100"}
package main

import (
	"bufio"
	"encoding/json"
	"math/rand"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1 "k8s.io/component-helpers/scheduling/corev1"
)

type node struct {
	Name   string            `json:"node"`
	Labels map[string]string `json:"labels"`
}

type selector struct {
	Terms   []v1.NodeSelectorTerm `json:"terms"`
	Matches string                `json:"matches"`
}

var (
	long63  = strings.Repeat("x", 63)
	long64  = strings.Repeat("x", 64)
	long253 = strings.Repeat("y.", 126) + "y"

	nodes = []node{
		{"n1", map[string]string{"kubernetes.io/hostname": "h1", "zone": "a", "n": "5", long63: "1"}},
		{"n2", map[string]string{"kubernetes.io/hostname": "n1", "zone": "b", "n": "-5", "empty": ""}},
		{"h1", map[string]string{"zone": "a", "n": "9223372036854775807", "example.com/x": long63}},
		{"node.with.dots-1", map[string]string{"n": "+7", "zone": "", "a_b.c": "A-b_c.d"}},
		{"n5", map[string]string{"n": "9223372036854775808", "empty": "x", "kubernetes.io/hostname": "n5"}},
		{"n6", map[string]string{"n": "5.0", "zone": "a"}},
		{"n7", map[string]string{"n": "007"}},
		{"n8", nil},
		// What the scheduler's check of a volume builds: without a name the fields are not looked at.
		{"", map[string]string{"zone": "a", "n": "0"}},
	}

	// Keys that nodes have, that no node has, and that are no label keys.
	keys = []string{
		"kubernetes.io/hostname", "kubernetes.io/hostname", "kubernetes.io/hostname", "zone", "zone", "zone", "n", "n", "empty",
		"absent", "example.com/x", "a_b.c", long63, "A", "0", "a.b/C_d",
		long253 + "/x", "y." + long253 + "/x", long64, "", "/x", "x/", "a/b/c", "A.com/x", "a..b/x", "-a/x", "a-/x", "a_b/x",
		"-a", "a-", ".a", "a b", "é", "a\n",
	}
	values = []string{
		"h1", "h1", "n1", "n1", "n5", "a", "a", "a", "b", "b", "", "", "x", "node.with.dots-1", "A-b_c.d", long63,
		long64, "no/label", "-a", "a-", "a b", "é", "a\n", "_", "h1 ",
	}
	integers = []string{
		"0", "1", "4", "5", "6", "7", "100", "007", "9223372036854775806", "9223372036854775807", "9223372036854775808",
		"-1", "+5", "5.0", "1e3", "0x5", "1_0", "", "a", " 5",
	}
	operators = []v1.NodeSelectorOperator{
		v1.NodeSelectorOpIn, v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn, v1.NodeSelectorOpNotIn, v1.NodeSelectorOpExists,
		v1.NodeSelectorOpDoesNotExist, v1.NodeSelectorOpGt, v1.NodeSelectorOpLt,
	}
	unknownOperators = []v1.NodeSelectorOperator{"", "in", "Equals", "="}
)

func main() {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	write := func(value any) {
		if err := encoder.Encode(value); err != nil {
			panic(err)
		}
	}

	for _, node := range nodes {
		write(node)
	}
	for _, terms := range byHand() {
		write(selector{terms, answers(terms)})
	}
	// A fixed seed: the same cases at each run.
	random := rand.New(rand.NewSource(1))
	for range 1500 {
		terms := []v1.NodeSelectorTerm{}
		for range 1 + random.Intn(2)*random.Intn(3) {
			terms = append(terms, randomTerm(random))
		}
		write(selector{terms, answers(terms)})
	}
}

func answers(terms []v1.NodeSelectorTerm) string {
	var matches strings.Builder
	for _, node := range nodes {
		object := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, Labels: node.Labels}}
		// The error names the requirements that are not valid, of terms that match nothing.
		match, _ := corev1.MatchNodeSelectorTerms(object, &v1.NodeSelector{NodeSelectorTerms: terms})
		if match {
			matches.WriteByte('1')
		} else {
			matches.WriteByte('0')
		}
	}
	return matches.String()
}

// byHand returns every key and every value with each operator, alone, and what random terms hardly hit.
func byHand() [][]v1.NodeSelectorTerm {
	selectors := [][]v1.NodeSelectorTerm{{}, {{}}, {{}, {}}}
	once := map[string]bool{}
	alone := func(key string, operator v1.NodeSelectorOperator, values ...string) {
		requirement := v1.NodeSelectorRequirement{Key: key, Operator: operator, Values: values}
		if text := requirement.String(); once[text] {
			return
		} else {
			once[text] = true
		}
		requirements := []v1.NodeSelectorRequirement{requirement}
		selectors = append(selectors, []v1.NodeSelectorTerm{{MatchExpressions: requirements}})
		if strings.HasPrefix(key, "metadata.") || key == "zone" {
			selectors = append(selectors, []v1.NodeSelectorTerm{{MatchFields: requirements}})
		}
	}
	for _, operator := range unknownOperators {
		alone("zone", operator, "a")
		alone("metadata.name", operator, "n1")
	}
	for _, operator := range operators {
		for _, key := range append(keys, "metadata.name", "metadata.namespace") {
			if operator == v1.NodeSelectorOpExists || operator == v1.NodeSelectorOpDoesNotExist {
				alone(key, operator)
			} else {
				alone(key, operator, "5")
			}
		}
		alone("zone", operator)
		alone("zone", operator, "a", "b")
		for _, value := range values {
			alone("kubernetes.io/hostname", operator, value)
			alone("absent", operator, value)
			alone("metadata.name", operator, value)
		}
		for _, value := range integers {
			alone("n", operator, value)
		}
	}
	for _, node := range nodes {
		alone("metadata.name", v1.NodeSelectorOpIn, node.Name)
		alone("metadata.name", v1.NodeSelectorOpNotIn, node.Name)
		alone("metadata.name", v1.NodeSelectorOpIn, node.Name, "n1")
	}
	return selectors
}

func randomTerm(random *rand.Rand) v1.NodeSelectorTerm {
	var term v1.NodeSelectorTerm
	if random.Intn(40) == 0 {
		return term
	}
	if random.Intn(4) != 0 {
		for range 1 + random.Intn(3) {
			term.MatchExpressions = append(term.MatchExpressions, randomExpression(random))
		}
	}
	if term.MatchExpressions == nil || random.Intn(5) == 0 {
		for range 1 + random.Intn(2)*random.Intn(2) {
			term.MatchFields = append(term.MatchFields, randomField(random))
		}
	}
	return term
}

func randomExpression(random *rand.Rand) v1.NodeSelectorRequirement {
	requirement := v1.NodeSelectorRequirement{Key: one(random, keys[:16]), Operator: one(random, operators)}
	// A few that are not valid: each takes its whole term with it, so many would leave nothing to compare.
	isInvalid := random.Intn(12) == 0
	if isInvalid && random.Intn(3) == 0 {
		requirement.Key = one(random, keys)
	}
	if isInvalid && random.Intn(6) == 0 {
		requirement.Operator = one(random, unknownOperators)
	}
	switch requirement.Operator {
	case v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn:
		for range 1 + random.Intn(3) {
			requirement.Values = append(requirement.Values, one(random, values[:16]))
		}
		if isInvalid {
			requirement.Values[0] = one(random, values)
		}
	case v1.NodeSelectorOpGt, v1.NodeSelectorOpLt:
		requirement.Key = one(random, []string{"n", "n", "n", requirement.Key})
		requirement.Values = []string{one(random, integers[:10])}
		if isInvalid {
			requirement.Values[0] = one(random, integers)
		}
	default:
		if isInvalid {
			requirement.Values = []string{one(random, values)}
		}
	}
	return requirement
}

func randomField(random *rand.Rand) v1.NodeSelectorRequirement {
	requirement := v1.NodeSelectorRequirement{Key: "metadata.name", Operator: one(random, operators[:4])}
	requirement.Values = []string{one(random, nodes[:len(nodes)-1]).Name}
	switch random.Intn(16) {
	case 0:
		requirement.Key = "metadata.namespace"
	case 1:
		requirement.Operator = one(random, operators)
	case 2:
		requirement.Values = append(requirement.Values, one(random, values))
	case 3:
		requirement.Values = []string{""}
	}
	return requirement
}

func one[T any](random *rand.Rand, choices []T) T {
	return choices[random.Intn(len(choices))]
}
