//! Strict JSON: one value, no duplicate keys, no unknown fields, and errors that say where but never repeat what was
//! sent (a password put into the wrong field must not come back in a message or a log).

use core::fmt;
use serde::de::{self, IntoDeserializer};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

/// A parsed JSON value whose objects have unique keys.
#[derive(Clone)]
pub enum Json {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Why a value is not what the type says: a message for the sender, and whether a field was not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub unknown_field: bool,
    path: String,
    what: String,
}

/// Longest part of a sender's field name that is repeated, in characters.
const MAX_ECHO: usize = 40;

/// A field name cut to a length and an alphabet that are safe to repeat.
fn echo(name: &str) -> String {
    name.chars()
        .take(MAX_ECHO)
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '?' })
        .collect()
}

impl Fault {
    fn new(what: String) -> Self {
        Self { unknown_field: false, path: String::new(), what }
    }

    fn within(mut self, field: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.path = format!("{}{dot}{}", echo(field), self.path);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.what) } else { write!(f, "{}: {}", self.path, self.what) }
    }
}

impl core::error::Error for Fault {}

impl de::Error for Fault {
    /// Texts of other types' errors are dropped, as they may repeat the input.
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::new("not a valid value".to_owned())
    }
    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}"))
    }
    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}"))
    }
    fn invalid_length(_: usize, expected: &dyn de::Expected) -> Self {
        Self::new(format!("expected {expected}"))
    }
    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("expected one of {}", expected.join(", ")))
    }
    fn unknown_field(field: &str, _: &'static [&'static str]) -> Self {
        Self { unknown_field: true, ..Self::new(format!("unknown field `{}`", echo(field))) }
    }
    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("missing field `{field}`"))
    }
    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!("duplicate field `{field}`"))
    }
}

/// Reads bytes as one JSON value, and nothing after it.
pub fn parse(bytes: &[u8]) -> Result<Json, Fault> {
    serde_json::from_slice(bytes).map_err(|e| {
        // The only data error that `Json` itself raises is a duplicate key.
        let what = if e.is_data() { "duplicate key" } else { "not JSON" };
        Fault::new(format!("{what} at line {}, column {}", e.line(), e.column()))
    })
}

/// Reads a value as a type.
pub fn read<'de, T: Deserialize<'de>>(value: Json) -> Result<T, Fault> {
    T::deserialize(value)
}

/// Reads the value of a field as a type.
pub fn read_field<'de, T: Deserialize<'de>>(field: &str, value: Json) -> Result<T, Fault> {
    T::deserialize(value).map_err(|fault| fault.within(field))
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Unsigned(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Signed(value))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::Text(value.to_owned()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Json::List(list))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut object = Vec::new();
                while let Some((key, value)) = entries.next_entry::<String, Json>()? {
                    if !seen.insert(key.clone()) {
                        return Err(de::Error::custom("duplicate key"));
                    }
                    object.push((key, value));
                }
                Ok(Json::Object(object))
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl<'de> IntoDeserializer<'de, Fault> for Json {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Json {
    type Error = Fault;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Null => visitor.visit_unit(),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Unsigned(value) => visitor.visit_u64(value),
            Self::Signed(value) => visitor.visit_i64(value),
            Self::Float(value) => visitor.visit_f64(value),
            Self::Text(value) => visitor.visit_string(value),
            Self::List(items) => visitor.visit_seq(Elements { rest: items.into_iter(), index: 0 }),
            Self::Object(entries) => visitor.visit_map(Entries { rest: entries.into_iter(), current: None }),
        }
    }

    fn deserialize_option<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Null => visitor.visit_none(),
            value => visitor.visit_some(value),
        }
    }

    fn deserialize_newtype_struct<V: de::Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: de::Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self {
            Self::Text(name) => visitor.visit_enum(name.into_deserializer()),
            _ => Err(de::Error::invalid_type(de::Unexpected::Other("value"), &"text")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// The elements of a list; errors in one get its index.
struct Elements {
    rest: std::vec::IntoIter<Json>,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Elements {
    type Error = Fault;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(value) = self.rest.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(value).map(Some).map_err(|fault| fault.within(&index.to_string()))
    }
}

/// The entries of an object; errors in a value get the path to it.
struct Entries {
    rest: std::vec::IntoIter<(String, Json)>,
    current: Option<(String, Json)>,
}

impl<'de> de::MapAccess<'de> for Entries {
    type Error = Fault;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        let read = seed.deserialize(key.as_str().into_deserializer())?;
        self.current = Some((key, value));
        Ok(Some(read))
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, value) = self.current.take().ok_or_else(|| Fault::new("value without key".to_owned()))?;
        seed.deserialize(value).map_err(|fault| fault.within(&key))
    }
}
