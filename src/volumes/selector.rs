//! Label selectors as kubectl takes them with `-l`, for the labels of claims.
//!
//! The grammar is that of k8s.io/apimachinery, pkg/labels: requirements between commas, all of which have to hold. What a
//! requirement means is told by [`Requirement`], as for node affinity.

use std::collections::BTreeMap;
use std::str::FromStr;

use thiserror::Error;

use super::affinity::{Operator, Requirement};
use super::quantity::excerpt;

/// Requirements on labels, all of which have to hold. Without any, everything is selected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// Why a text is no label selector.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot read {text:?} as a label selector: {why}; write it as for kubectl -l, such as team=a,tier!=test")]
pub struct SelectorError {
    /// The beginning of the text.
    text: String,
    /// What is wrong.
    why: String,
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Selector, SelectorError> {
        let mut reader = Reader {
            tokens: tokens(text),
            at: 0,
        };
        let requirements = reader.requirements().map_err(|why| SelectorError {
            text: excerpt(text),
            why,
        })?;
        Ok(Selector { requirements })
    }
}

impl Selector {
    /// The selector of what all of these select.
    pub fn all(selectors: impl IntoIterator<Item = Selector>) -> Selector {
        Selector {
            requirements: selectors.into_iter().flat_map(|one| one.requirements).collect(),
        }
    }

    /// Whether labels meet every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.label_matches(labels))
    }

    /// The keys of the labels that it looks at.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().map(|requirement| requirement.key.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A key, a value, `in` or `notin`: which, is told by its place.
    Word(String),
    /// `=`, `==`, `!=`, `!`, `>`, `<`, `(`, `)` or `,`.
    Sign(&'static str),
}

/// The longest ones first, as the first that fits is taken.
const SIGNS: [&str; 9] = ["==", "!=", "=", "!", ">", "<", "(", ")", ","];

fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let length = match SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            Some(sign) => {
                found.push(Token::Sign(sign));
                sign.len()
            }
            None => {
                let is_end = |c: char| c.is_whitespace() || "=!><(),".contains(c);
                let end = rest.find(is_end).unwrap_or(rest.len());
                found.push(Token::Word(rest[..end].to_owned()));
                end
            }
        };
        rest = rest[length..].trim_start();
    }
    found
}

struct Reader {
    tokens: Vec<Token>,
    at: usize,
}

impl Reader {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// Whether a requirement ends here.
    fn is_end(&self) -> bool {
        matches!(self.peek(), None | Some(Token::Sign(",")))
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut found = Vec::new();
        if self.tokens.is_empty() {
            return Ok(found);
        }
        loop {
            let requirement = self.requirement()?;
            if let Some(why) = requirement.why_invalid_for_label() {
                return Err(why);
            }
            found.push(requirement);
            match self.next() {
                None => return Ok(found),
                Some(Token::Sign(",")) => {}
                Some(other) => return Err(format!("a comma or the end was expected, not {}", told(Some(&other)))),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let is_negated = self.peek() == Some(&Token::Sign("!"));
        if is_negated {
            self.at += 1;
        }
        let key = match self.next() {
            Some(Token::Word(key)) => key,
            other => return Err(format!("a label's key was expected, not {}", told(other.as_ref()))),
        };
        let (operator, values) = if is_negated {
            (Operator::DoesNotExist, Vec::new())
        } else if self.is_end() {
            (Operator::Exists, Vec::new())
        } else {
            self.comparison()?
        };
        Ok(Requirement { key, operator, values })
    }

    fn comparison(&mut self) -> Result<(Operator, Vec<String>), String> {
        let operator = match self.next() {
            Some(Token::Sign("=" | "==")) => Operator::In,
            Some(Token::Sign("!=")) => Operator::NotIn,
            Some(Token::Sign(">")) => Operator::Gt,
            Some(Token::Sign("<")) => Operator::Lt,
            Some(Token::Word(word)) if word == "in" => return Ok((Operator::In, self.set()?)),
            Some(Token::Word(word)) if word == "notin" => return Ok((Operator::NotIn, self.set()?)),
            other => {
                return Err(format!(
                    "one of = == != in notin > < was expected, not {}",
                    told(other.as_ref())
                ));
            }
        };
        Ok((operator, vec![self.value()?]))
    }

    /// A value, which may be left out where it is empty.
    fn value(&mut self) -> Result<String, String> {
        if self.is_end() || self.peek() == Some(&Token::Sign(")")) {
            return Ok(String::new());
        }
        match self.next() {
            Some(Token::Word(value)) => Ok(value),
            other => Err(format!("a value was expected, not {}", told(other.as_ref()))),
        }
    }

    /// Values between parentheses.
    fn set(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Some(Token::Sign("(")) => {}
            other => return Err(format!("( was expected, not {}", told(other.as_ref()))),
        }
        if self.peek() == Some(&Token::Sign(")")) {
            return Err("a set of values may not be empty".to_owned());
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            match self.next() {
                Some(Token::Sign(")")) => return Ok(values),
                Some(Token::Sign(",")) => {}
                other => return Err(format!("a comma or ) was expected, not {}", told(other.as_ref()))),
            }
        }
    }
}

fn told(token: Option<&Token>) -> String {
    match token {
        None => "the end".to_owned(),
        Some(Token::Word(word)) => format!("{:?}", excerpt(word)),
        Some(Token::Sign(sign)) => (*sign).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// What a selector says of labels, each of which is given as `key=value key=value`.
    fn check(selector: &str, matching: &[&str], others: &[&str]) {
        let parsed: Selector = selector.parse().expect("it is a selector");
        for one in matching {
            assert!(parsed.matches(&labels(one)), "{selector:?} should match {one:?}");
        }
        for one in others {
            assert!(!parsed.matches(&labels(one)), "{selector:?} should not match {one:?}");
        }
    }

    #[test]
    fn what_matches() {
        check("", &["", "team=a"], &[]);
        check(" team = a ", &["team=a", "team=a tier=x"], &["", "team=b", "team="]);
        check("team==a", &["team=a"], &["team=b"]);
        check("team=", &["team="], &["", "team=a"]);
        check("team!=a", &["", "team=b"], &["team=a"]);
        check("team", &["team=a", "team="], &["tier=a"]);
        check("!team", &["", "tier=a"], &["team=a", "team="]);
        check("! team", &[""], &["team=a"]);
        check("team in (a, b)", &["team=a", "team=b"], &["", "team=c", "team="]);
        check("team in (,a)", &["team=a", "team="], &["", "team=b"]);
        check("team notin (a,b)", &["", "team=c"], &["team=a", "team=b"]);
        check(
            "team in(a),tier!=test",
            &["team=a", "team=a tier=x"],
            &["team=a tier=test", "team=b"],
        );
        check(
            "disks>3,disks<9",
            &["disks=4"],
            &["", "disks=3", "disks=9", "disks=many"],
        );
        check("example.com/team=a", &["example.com/team=a"], &["team=a"]);
        // Words of the grammar are keys and values where they stand as such.
        check("in=notin", &["in=notin"], &["in=in"]);
        check("in in (in)", &["in=in"], &["in=a"]);
    }

    #[test]
    fn several_selectors_hold_together() {
        let both = Selector::all(["team=a", "!tier"].map(|one| one.parse::<Selector>().expect("a selector")));
        assert!(both.matches(&labels("team=a")));
        assert!(!both.matches(&labels("team=a tier=x")) && !both.matches(&labels("")));
        assert_eq!(both.keys().collect::<Vec<_>>(), ["team", "tier"]);
    }

    #[test]
    fn what_is_no_selector_is_told() {
        let long = "x".repeat(64);
        for (text, why) in [
            (",", "a label's key was expected, not ,"),
            ("team=a,", "a label's key was expected, not the end"),
            ("=a", "a label's key was expected, not ="),
            ("team=a=b", "a comma or the end was expected, not ="),
            ("team==a==b", "a comma or the end was expected, not =="),
            ("!team=a", "a comma or the end was expected, not ="),
            ("team a", "one of = == != in notin > < was expected, not \"a\""),
            ("team in a", "( was expected, not \"a\""),
            ("team in ()", "a set of values may not be empty"),
            ("team in (a", "a comma or ) was expected, not the end"),
            ("team in (a b)", "a comma or ) was expected, not \"b\""),
            ("team=(a)", "a value was expected, not ("),
            ("team=a||tier=b", "\"a||tier\" is no label value"),
            ("te am", "was expected"),
            ("disks>many", "\"many\" is no integer"),
            ("-team=a", "\"-team\" is no label key"),
            ("/team", "\"/team\" is no label key"),
            (&format!("team={long}"), "is no label value"),
        ] {
            let error = text.parse::<Selector>().expect_err(text).to_string();
            assert!(error.contains(why), "{error:?} should say {why:?}");
            assert!(error.contains("kubectl -l"), "{error:?} should say what to do");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-b!=<>(), \\PC]{0,30}") {
            let _ = text.parse::<Selector>();
        }
    }
}
