//! One flat map of settings from the environment and an optional file, with every problem collected.
//!
//! A key is lower case with underscores: `nats_url`. It may be given as `TREFOIL_NATS_URL`, as `TREFOIL_NATS__URL`
//! (a double underscore nests), as `nats_url = …` in the file or as `url = …` under `[nats]`. The environment wins
//! over the file. A value set to the empty string counts as not set. Secrets may be given by file: `master_key_file`
//! names a file whose content, without trailing line ends, is the value of `master_key`.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use zeroize::Zeroizing;

/// The prefix of every environment variable.
const PREFIX: &str = "TREFOIL";

/// Variables with our prefix that other tools of this project read; a process must not stumble over them.
const FOREIGN: &[&str] = &[
    "config",
    "nats_server",
    // The logs read it before there are settings.
    #[cfg(feature = "otlp")]
    "otlp_endpoint",
];

/// Everything that is wrong with a configuration, one problem a line.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem(s):{}", .0.len(), lines(.0))]
pub struct ConfigError(pub Vec<String>);

fn lines(problems: &[String]) -> String {
    problems.iter().fold(String::new(), |mut text, problem| {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  - {problem}");
        text
    })
}

/// The settings not yet read, and the problems found so far.
pub struct Settings {
    values: BTreeMap<String, Value>,
    problems: Vec<String>,
}

impl Settings {
    /// Reads the process environment and, where `TREFOIL_CONFIG` names one, a TOML file.
    #[must_use]
    pub fn from_process() -> Self {
        Self::from_env(std::env::vars().collect())
    }

    /// The same from a given environment (tests, embedding).
    #[must_use]
    pub fn from_env(env: std::collections::HashMap<String, String>) -> Self {
        let mut settings = Self { values: BTreeMap::new(), problems: Vec::new() };
        let file = env.get("TREFOIL_CONFIG").filter(|path| !path.is_empty()).cloned();
        if let Some(path) = file {
            settings.add(&path, config::File::from(Path::new(&path)).format(config::FileFormat::Toml));
        }
        let source = config::Environment::with_prefix(PREFIX)
            .prefix_separator("_")
            .separator("__")
            .ignore_empty(true)
            .source(Some(env.into_iter().collect()));
        settings.add("the environment", source);
        for key in FOREIGN.iter().chain(crate::fault::SETTINGS) {
            settings.values.remove(*key);
        }
        settings
    }

    fn add(&mut self, origin: &str, source: impl config::Source + Send + Sync + 'static) {
        let tree = config::Config::builder()
            .add_source(source)
            .build()
            .and_then(config::Config::try_deserialize::<serde_json::Map<String, Value>>);
        match tree {
            Ok(tree) => {
                let mut flat = BTreeMap::new();
                flatten("", tree, &mut flat, &mut |key| {
                    self.problems.push(format!("{key}: set twice in {origin}"));
                });
                // A value here and a `_file` there are the same setting: the later source wins as a whole.
                for key in flat.keys() {
                    let sibling = key.strip_suffix("_file").map_or_else(|| format!("{key}_file"), str::to_owned);
                    if !flat.contains_key(&sibling) {
                        self.values.remove(&sibling);
                    }
                }
                self.values.extend(flat);
            }
            Err(error) => self.problems.push(format!("{origin}: {error}")),
        }
    }

    /// Forgets all settings but those whose names begin so: for who needs only a part of what another process is configured with.
    pub fn keep(&mut self, prefix: &str) {
        self.values.retain(|key, _| key.starts_with(prefix));
    }

    /// Records a problem with `key`.
    pub fn problem(&mut self, key: &str, what: impl std::fmt::Display) {
        self.problems.push(format!("{key}: {what}"));
    }

    /// The text of a setting, if it is set. Numbers and booleans of a file become their text.
    pub fn text(&mut self, key: &str) -> Option<Zeroizing<String>> {
        let value = self.values.remove(key)?;
        match value {
            Value::String(text) => Some(Zeroizing::new(text)),
            Value::Number(number) => Some(Zeroizing::new(number.to_string())),
            Value::Bool(flag) => Some(Zeroizing::new(flag.to_string())),
            _ => {
                self.problem(key, "expected a single value");
                None
            }
        }
    }

    /// A setting, parsed. Not set or not parsable gives `None`; only the latter is a problem.
    pub fn optional<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key)?;
        parse(text.trim()).map_err(|error| self.problem(key, error)).ok()
    }

    /// A setting that must be there.
    pub fn required<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.values.contains_key(key) {
            self.problem(key, format_args!("must be set ({})", variable(key)));
            return None;
        }
        self.optional(key, parse)
    }

    /// A setting with a default.
    pub fn or<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if self.values.contains_key(key) { self.optional(key, parse) } else { Some(default) }
    }

    /// A number within bounds, with a default.
    pub fn number(&mut self, key: &str, default: u64, bounds: std::ops::RangeInclusive<u64>) -> Option<u64> {
        self.or(key, default, |text| match text.parse::<u64>() {
            Ok(number) if bounds.contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {} to {}", bounds.start(), bounds.end())),
        })
    }

    /// A secret by value or by file (`<key>_file`), parsed. Its text never appears in a problem.
    pub fn secret<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        required: bool,
    ) -> Option<T> {
        self.content(key, required)
            .and_then(|text| parse(text.trim_end()).or_else(|| self.refuse(key, format_args!("must be {expected}"))))
    }

    /// The content of a setting that may be given by value or by file.
    pub fn content(&mut self, key: &str, required: bool) -> Option<Zeroizing<String>> {
        let by_file = format!("{key}_file");
        let (value, path) = (self.values.contains_key(key), self.values.contains_key(&by_file));
        match (value, path) {
            (true, true) => {
                self.values.remove(key);
                self.values.remove(&by_file);
                self.refuse(key, format_args!("set both by value and by file ({by_file})"))
            }
            (true, false) => self.text(key),
            (false, true) => {
                let path = self.text(&by_file)?;
                match std::fs::read_to_string(path.as_str()) {
                    Ok(text) => Some(Zeroizing::new(text)),
                    Err(error) => self.refuse(&by_file, format_args!("{}: {error}", path.as_str())),
                }
            }
            (false, false) if required => {
                self.refuse(key, format_args!("must be set ({0} or {0}_FILE)", variable(key)))
            }
            (false, false) => None,
        }
    }

    fn refuse<T>(&mut self, key: &str, what: impl std::fmt::Display) -> Option<T> {
        self.problem(key, what);
        None
    }

    /// A list: an array in the file, separated by commas or spaces in the environment. Not set gives an empty list.
    pub fn list<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnMut(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let texts = self.texts(key)?;
        self.parsed(&texts, parse, |index| format!("{key}[{index}]"))
    }

    fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        match self.values.remove(key) {
            None => Some(Vec::new()),
            Some(Value::Array(items)) => {
                let text = |item: Value| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
                Some(items.into_iter().map(text).collect())
            }
            Some(Value::String(text)) => {
                Some(text.split([',', ' ', '\n']).filter(|part| !part.is_empty()).map(str::to_owned).collect())
            }
            Some(_) => self.refuse(key, "expected a list"),
        }
    }

    fn parsed<T, E: std::fmt::Display>(
        &mut self,
        texts: &[String],
        mut parse: impl FnMut(&str) -> Result<T, E>,
        name: impl Fn(usize) -> String,
    ) -> Option<Vec<T>> {
        let mut parsed = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            match parse(text.trim()) {
                Ok(value) => parsed.push(value),
                Err(error) => self.problem(&name(index), error),
            }
        }
        (parsed.len() == texts.len()).then_some(parsed)
    }

    /// One or more, as a list is written; what is wrong with an only one is said without a number.
    pub fn some<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnMut(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        if !self.values.contains_key(key) {
            return self.refuse(key, format_args!("must be set ({})", variable(key)));
        }
        match self.texts(key)? {
            texts if texts.is_empty() => self.refuse(key, "must name at least one"),
            texts if texts.len() == 1 => self.parsed(&texts, parse, |_| key.to_owned()),
            texts => self.parsed(&texts, parse, |index| format!("{key}[{index}]")),
        }
    }

    /// The finished configuration, or every problem: those recorded, and each setting that nothing asked for.
    ///
    /// # Errors
    /// [`ConfigError`] with at least one line.
    pub fn finish<T>(mut self, config: Option<T>) -> Result<T, ConfigError> {
        for key in std::mem::take(&mut self.values).into_keys() {
            self.problem(&key, "unknown setting");
        }
        match config {
            Some(config) if self.problems.is_empty() => Ok(config),
            _ => Err(ConfigError(self.problems)),
        }
    }
}

/// The environment variable of a setting.
fn variable(key: &str) -> String {
    format!("{PREFIX}_{}", key.to_uppercase())
}

fn flatten(
    prefix: &str,
    tree: serde_json::Map<String, Value>,
    flat: &mut BTreeMap<String, Value>,
    twice: &mut impl FnMut(&str),
) {
    for (name, value) in tree {
        let key = if prefix.is_empty() { name.to_lowercase() } else { format!("{prefix}_{}", name.to_lowercase()) };
        match value {
            Value::Object(inner) => flatten(&key, inner, flat, twice),
            value => {
                if flat.insert(key.clone(), value).is_some() {
                    twice(&key);
                }
            }
        }
    }
}
