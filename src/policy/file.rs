//! The policy file: TOML, in which everything is known or refused, and every problem is named at once with its line.

use super::{Grant, HIGHEST_RATE, LONGEST_LIFETIME, MAX_FILE_BYTES, Policy};
use crate::wire::{InitiatorId, Op};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong with a policy file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Counted from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

/// Everything that is wrong with a policy file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the policy has {} problem(s):{}", .0.len(), .0.iter().map(|problem| format!("\n  - {problem}")).collect::<String>())]
pub struct PolicyError(pub Vec<Problem>);

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let whole = |message: String| PolicyError(vec![Problem { line: 0, message }]);
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
        read.map_err(|error| whole(format!("{}: {error}", path.display())))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(whole(format!("the file has more than {MAX_FILE_BYTES} bytes")));
        }
        Self::parse(&text)
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let mut reader = Reader { text, problems: Vec::new() };
        let (tree, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            reader.problem(&error.span().unwrap_or_default(), error.message());
        }
        // Behind an error of syntax, the tree need not be what was meant.
        let grants = if errors.is_empty() { reader.policy(&tree) } else { HashMap::new() };
        let mut problems = reader.problems;
        problems.sort_by_key(|problem| problem.line);
        if problems.is_empty() {
            Ok(Self { grants, digest: Sha256::digest(text).into() })
        } else {
            Err(PolicyError(problems))
        }
    }
}

type Value<'t> = Spanned<DeValue<'t>>;

struct Reader<'t> {
    text: &'t str,
    problems: Vec<Problem>,
}

/// The keys of a table that were not asked for yet.
struct Fields<'a, 't> {
    values: BTreeMap<&'a str, (Range<usize>, &'a Value<'t>)>,
    span: Range<usize>,
    what: String,
}

impl<'t> Reader<'t> {
    fn problem(&mut self, span: &Range<usize>, message: impl Into<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        self.problems.push(Problem { line: 1 + before.matches('\n').count(), message: message.into() });
    }

    fn policy(&mut self, tree: &Spanned<DeTable<'t>>) -> HashMap<InitiatorId, Arc<Grant>> {
        let mut fields = Fields::new(tree.get_ref(), 0..0, "the policy");
        if let Some((span, value)) = fields.required("version", self)
            && number(value) != Some(1)
        {
            self.problem(&span, "`version` must be 1");
        }
        let mut grants = HashMap::new();
        let (mut names, mut known) = (HashSet::new(), HashSet::new());
        if let Some((span, value)) = fields.required("initiators", self) {
            let entries = value.get_ref().as_array().filter(|entries| !entries.is_empty());
            if entries.is_none() {
                self.problem(&span, "`initiators` must be one or more [[initiators]] tables");
            }
            for entry in entries.into_iter().flat_map(|entries| entries.iter()) {
                let Some(table) = entry.get_ref().as_table() else {
                    self.problem(&entry.span(), "an initiator must be a table");
                    continue;
                };
                let Some(grant) = self.grant(table, entry.span()) else { continue };
                if !names.insert(grant.name.clone()) {
                    self.problem(&entry.span(), format!("the name {} is used twice", grant.name));
                }
                for key in grant.owners().filter(|key| !known.insert((*key).clone())) {
                    self.problem(&entry.span(), format!("{key} is listed twice"));
                }
                let grant = Arc::new(grant);
                grants.extend(grant.keys.iter().map(|key| (key.clone(), grant.clone())));
            }
        }
        fields.finish(self);
        grants
    }

    fn grant(&mut self, table: &DeTable<'t>, span: Range<usize>) -> Option<Grant> {
        let mut fields = Fields::new(table, span, "an initiator");
        let name = fields.required("name", self).and_then(|(span, value)| {
            let name = value.get_ref().as_str();
            let name = name.filter(|name| (1..=64).contains(&name.len()) && !name.contains(char::is_control));
            name.map(str::to_owned).or_else(|| self.refuse(&span, "`name` must be a text of 1 to 64 bytes"))
        });
        if let Some(name) = &name {
            fields.what = format!("initiator {name}");
        }
        let keys = match (fields.optional("keys"), fields.optional("key")) {
            (Some((span, _)), Some(_)) => self.refuse(&span, format!("{} has both `key` and `keys`", fields.what)),
            (Some((span, value)), None) => match self.keys("keys", value) {
                Some(keys) if keys.is_empty() => self.refuse(&span, "`keys` must name at least one"),
                keys => keys,
            },
            (None, Some((span, value))) => {
                let key = value.get_ref().as_str().and_then(|text| text.parse::<InitiatorId>().ok());
                let key = key.or_else(|| self.refuse(&span, "`key` must be the public half of a user NKEY (U…)"));
                key.map(|key| vec![key])
            }
            (None, None) => {
                let message = format!("{} lacks `key`", fields.what);
                self.refuse(&fields.span.clone(), message)
            }
        };
        let former =
            fields.optional("former").map_or_else(|| Some(Vec::new()), |(_, value)| self.keys("former", value));
        let operations = fields.required("operations", self).map(|(_, value)| self.names("operations", value));
        let curves = fields.required("curves", self).map(|(_, value)| self.names("curves", value));
        let raw_digests = fields.optional("raw_digests").map_or(Some(false), |(span, value)| {
            value.get_ref().as_bool().or_else(|| self.refuse(&span, "`raw_digests` must be true or false"))
        });
        let longest = LONGEST_LIFETIME.as_secs();
        let lifetime = self.bounded(&mut fields, "max_lifetime_seconds", 1..=longest).map(|own| own.unwrap_or(longest));
        let max_keys = self.bounded(&mut fields, "max_keys", 0..=u64::from(u32::MAX));
        let rates = fields.optional("jobs_per_minute");
        let jobs_per_minute =
            rates.map(|(span, value)| self.rates(&span, value, operations.as_ref())).unwrap_or_default();
        fields.finish(self);
        Some(Grant {
            name: name?,
            keys: keys?,
            former: former?,
            operations: operations?,
            curves: curves?,
            raw_digests: raw_digests?,
            max_lifetime: Duration::from_secs(lifetime?),
            max_keys: max_keys?,
            jobs_per_minute,
        })
    }

    fn rates(
        &mut self,
        span: &Range<usize>,
        value: &Value<'t>,
        operations: Option<&BTreeSet<Op>>,
    ) -> BTreeMap<Op, u64> {
        let mut rates = BTreeMap::new();
        let Some(table) = value.get_ref().as_table() else {
            self.problem(span, "`jobs_per_minute` must be a table of operations, such as { sign = 60 }");
            return rates;
        };
        for (name, value) in table {
            let op = name.get_ref().parse::<Op>().ok();
            match (op, number(value)) {
                (None, _) => self.problem(&name.span(), format!("unknown operation `{}`", shown(name.get_ref()))),
                (Some(op), _) if operations.is_some_and(|granted| !granted.contains(&op)) => {
                    let message = format!("a rate for `{}`, which is not among the operations", name.get_ref());
                    self.problem(&name.span(), message);
                }
                (Some(op), Some(rate)) if (1..=HIGHEST_RATE).contains(&rate) => {
                    rates.insert(op, rate);
                }
                _ => self.problem(&value.span(), format!("a rate must be a whole number from 1 to {HIGHEST_RATE}")),
            }
        }
        rates
    }

    /// A list of keys.
    fn keys(&mut self, name: &str, value: &Value<'t>) -> Option<Vec<InitiatorId>> {
        let Some(items) = value.get_ref().as_array() else {
            return self.refuse(&value.span(), format!("`{name}` must be a list"));
        };
        let mut keys = Vec::new();
        for item in items {
            match item.get_ref().as_str().and_then(|text| text.parse().ok()) {
                Some(key) => keys.push(key),
                None => {
                    let message = format!("`{name}` must be public halves of user NKEYs (U…)");
                    return self.refuse(&item.span(), message);
                }
            }
        }
        Some(keys)
    }

    /// A list of names, each known and there once.
    fn names<T: FromStr + Ord + Copy>(&mut self, key: &str, value: &Value<'t>) -> BTreeSet<T> {
        let mut names = BTreeSet::new();
        let Some(items) = value.get_ref().as_array() else {
            self.problem(&value.span(), format!("`{key}` must be a list"));
            return names;
        };
        for item in items {
            let text = item.get_ref().as_str().unwrap_or_default();
            match text.parse::<T>() {
                Ok(name) if !names.insert(name) => {
                    self.problem(&item.span(), format!("`{key}`: {text} is listed twice"));
                }
                Ok(_) => {}
                Err(_) => self.problem(&item.span(), format!("`{key}`: unknown name `{}`", shown(text))),
            }
        }
        names
    }

    /// A number within bounds, if it is there; the outer `None` is a problem.
    fn bounded(&mut self, fields: &mut Fields<'_, 't>, key: &str, bounds: RangeInclusive<u64>) -> Option<Option<u64>> {
        let Some((span, value)) = fields.optional(key) else { return Some(None) };
        match number(value) {
            Some(number) if bounds.contains(&number) => Some(Some(number)),
            _ => self
                .refuse(&span, format!("`{key}` must be a whole number from {} to {}", bounds.start(), bounds.end())),
        }
    }

    fn refuse<T>(&mut self, span: &Range<usize>, message: impl Into<String>) -> Option<T> {
        self.problem(span, message);
        None
    }
}

impl<'a, 't> Fields<'a, 't> {
    fn new(table: &'a DeTable<'t>, span: Range<usize>, what: &str) -> Self {
        let values = table.iter().map(|(key, value)| (key.get_ref().as_ref(), (key.span(), value))).collect();
        Self { values, span, what: what.to_owned() }
    }

    fn optional(&mut self, key: &str) -> Option<(Range<usize>, &'a Value<'t>)> {
        self.values.remove(key)
    }

    fn required(&mut self, key: &str, reader: &mut Reader<'_>) -> Option<(Range<usize>, &'a Value<'t>)> {
        let value = self.optional(key);
        if value.is_none() {
            reader.problem(&self.span, format!("{} lacks `{key}`", self.what));
        }
        value
    }

    fn finish(self, reader: &mut Reader<'_>) {
        for (key, (span, _)) in self.values {
            reader.problem(&span, format!("unknown key `{}`", shown(key)));
        }
    }
}

fn number(value: &Value<'_>) -> Option<u64> {
    let integer = value.get_ref().as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// What somebody wrote, cut and cleaned for a message.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}
