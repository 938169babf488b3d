//! The public data model: which classes, fields, messages and enumerations an XAPI daemon has.
//!
//! Loaded once from `schema.json`, a digest of the published `xenapi.json` (facts only). Everything generic hangs on it: rows with every
//! field, getters and setters, arity and types of parameters, roles. Holds no behaviour and no state.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::xapi::wire::{Failure, NEVER, Ref};

/// A row of the database: field name → value, in the encodings of JSON (xapi.md 1.3).
pub type Record = Map<String, Value>;

/// Marks a string that the daemon would write as a bare `NaN`, `Infinity` or `-Infinity` (xapi.md 1.3).
pub const ODD_FLOAT: char = '\u{7f}';

/// A type of the data model. `Other` stands for shapes that no simulated call takes apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    String,
    Int,
    Float,
    Bool,
    DateTime,
    Void,
    Enum(String),
    Ref(String),
    Set(Box<Type>),
    Map(Box<Type>, Box<Type>),
    Record(String),
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qualifier {
    /// A client may set it.
    Rw,
    /// Given to the constructor, then fixed.
    Constructor,
    /// The daemon's own.
    Runtime,
}

pub struct Field {
    pub name: String,
    pub kind: Type,
    pub qualifier: Qualifier,
    /// The value that a constructor takes where the caller leaves it out; `None`: compulsory.
    pub default: Option<Value>,
}

pub struct Param {
    pub name: String,
    pub kind: Type,
    pub default: Option<Value>,
}

pub struct Message {
    pub name: String,
    /// Without the session.
    pub params: Vec<Param>,
    pub result: Type,
    /// The least role that may call it.
    pub role: String,
    /// Made by XAPI's generator: field accessors, look-ups, constructors and destructors.
    pub implicit: bool,
    pub sessionless: bool,
    pub removed: bool,
}

pub struct Class {
    pub name: String,
    pub fields: Vec<Field>,
    pub messages: BTreeMap<String, Message>,
}

/// `many.field` refers to one `one`; XAPI's database keeps `one.set` as its inverse.
pub struct Relation {
    pub many: String,
    pub field: String,
    pub one: String,
    pub set: String,
}

#[derive(Default)]
pub struct Schema {
    pub classes: BTreeMap<String, Class>,
    pub enums: BTreeMap<String, Vec<String>>,
    pub relations: Vec<Relation>,
    /// Every class that has a table in XAPI's database, simulated or not: `valid_ref_counts` names them all (xapi.md 14).
    pub tables: Vec<String>,
}

/// The one schema of the process.
pub fn schema() -> &'static Schema {
    // The digest is part of the program: it parses, as a test proves. Were it broken, no class would be known to any call.
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Digest::read().unwrap_or_default());
    &SCHEMA
}

impl Schema {
    pub fn class(&self, name: &str) -> Option<&Class> {
        self.classes.get(name)
    }

    /// The class whose name differs at most in case, as `event.from` takes it (xapi.md 5).
    pub fn class_in_any_case(&self, name: &str) -> Option<&Class> {
        self.classes.values().find(|c| c.name.eq_ignore_ascii_case(name))
    }
}

impl Class {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// A row with every field at its default: clients learn a class's fields from the first record they see (xapi.md 14).
    pub fn blank(&self) -> Record {
        self.fields.iter().map(|f| (f.name.clone(), f.default.clone().unwrap_or_else(|| f.kind.zero()))).collect()
    }

    /// What a client's constructor struct becomes: defaults filled in, types checked, unknown keys dropped.
    ///
    /// # Errors
    /// A missing compulsory field is an `INTERNAL_ERROR` that names the dispatcher's exception (xapi.md 1.4).
    pub fn construct(&self, given: &Value) -> Result<Record, Failure> {
        let mut row = Record::new();
        for field in self.fields.iter().filter(|f| f.qualifier != Qualifier::Runtime) {
            let value = match (given.get(&field.name), &field.default) {
                (Some(value), _) => field.kind.accept(value, &field.name)?,
                (None, Some(default)) => default.clone(),
                (None, None) => {
                    let text = format!("Server_helpers.Dispatcher_FieldNotFound(\"{}\")", field.name);
                    return Err(Failure::new("INTERNAL_ERROR", [text]));
                }
            };
            row.insert(field.name.clone(), value);
        }
        Ok(row)
    }
}

impl Message {
    /// Actions have an `Async.` form; accessors, and what xapi.md 4.1 lists, have none.
    pub fn has_async(&self, class: &str) -> bool {
        let accessor = self.implicit && !matches!(self.name.as_str(), "create" | "destroy");
        let sync_only = matches!(
            (class, self.name.as_str()),
            ("session" | "task" | "event" | "message" | "role" | "user", _) | ("VDI", "set_sharable" | "set_read_only")
        ) || self.name.starts_with("get_")
            || (class == "VM" && ["set_memory_", "set_VCPUs_"].iter().any(|p| self.name.starts_with(p)));
        !accessor && !sync_only
    }
}

impl Type {
    fn parse(text: &str) -> Self {
        let text = text.trim();
        if let Some(inner) = text.strip_suffix(" set") {
            return Self::Set(Box::new(Self::parse(inner)));
        }
        if let Some((key, value)) =
            text.strip_prefix('(').and_then(|t| t.strip_suffix(") map")).and_then(|t| t.split_once(" -> "))
        {
            return Self::Map(Box::new(Self::parse(key)), Box::new(Self::parse(value)));
        }
        if let Some(name) = text.strip_prefix("enum ") {
            return Self::Enum(name.to_owned());
        }
        match (text, text.strip_suffix(" ref"), text.strip_suffix(" record")) {
            (_, Some(class), _) => Self::Ref(class.to_owned()),
            (_, _, Some(class)) => Self::Record(class.to_owned()),
            ("string", ..) => Self::String,
            ("int", ..) => Self::Int,
            ("float", ..) => Self::Float,
            ("bool", ..) => Self::Bool,
            ("datetime", ..) => Self::DateTime,
            ("void", ..) => Self::Void,
            (_, None, None) => Self::Other,
        }
    }

    /// The value of a field that nobody has set.
    pub fn zero(&self) -> Value {
        match self {
            Self::String | Self::Void => json!(""),
            Self::Int => json!(0),
            Self::Float => json!(0.0),
            Self::Bool => json!(false),
            Self::DateTime => json!(NEVER),
            Self::Enum(name) => schema_enum_first(name),
            Self::Ref(_) => json!(Ref::NULL),
            Self::Set(_) => json!([]),
            Self::Map(..) | Self::Record(_) | Self::Other => json!({}),
        }
    }

    /// A client's value in the encoding the database keeps: numbers may come as numeric strings (xapi.md 1.3).
    ///
    /// # Errors
    /// `FIELD_TYPE_ERROR [what]` where the shape does not fit.
    pub fn accept(&self, value: &Value, what: &str) -> Result<Value, Failure> {
        let wrong = || Failure::new("FIELD_TYPE_ERROR", [what]);
        match self {
            Self::String | Self::Ref(_) | Self::Enum(_) | Self::DateTime | Self::Void => {
                value.as_str().map(Value::from).ok_or_else(wrong)
            }
            Self::Int => value.as_i64().or_else(|| value.as_str()?.parse().ok()).map(Value::from).ok_or_else(wrong),
            Self::Float => value.as_f64().or_else(|| value.as_str()?.parse().ok()).map(Value::from).ok_or_else(wrong),
            Self::Bool => value.as_bool().map(Value::from).ok_or_else(wrong),
            Self::Set(inner) => {
                let items = value.as_array().ok_or_else(wrong)?;
                items.iter().map(|v| inner.accept(v, what)).collect::<Result<Vec<_>, _>>().map(Value::from)
            }
            Self::Map(_, inner) => {
                let entries = value.as_object().ok_or_else(wrong)?;
                let entries = entries.iter().map(|(k, v)| Ok((k.clone(), inner.accept(v, what)?)));
                entries.collect::<Result<Record, Failure>>().map(Value::Object)
            }
            Self::Record(_) => value.is_object().then(|| value.clone()).ok_or_else(wrong),
            Self::Other => Ok(value.clone()),
        }
    }
}

fn schema_enum_first(name: &str) -> Value {
    json!(Digest::enums().get(name).and_then(|values| values.first()).map_or("", String::as_str))
}

#[derive(Deserialize)]
struct Digest {
    classes: BTreeMap<String, DigestClass>,
    enums: BTreeMap<String, Vec<String>>,
    relations: Vec<(String, String, String, String)>,
    tables: Vec<String>,
}

#[derive(Deserialize)]
struct DigestClass {
    fields: Vec<Vec<String>>,
    messages: Vec<DigestMessage>,
}

#[derive(Deserialize)]
struct DigestMessage {
    name: String,
    params: Vec<Vec<Value>>,
    result: String,
    role: String,
    #[serde(default)]
    implicit: bool,
    #[serde(default)]
    sessionless: bool,
    #[serde(default)]
    removed: bool,
}

impl Digest {
    fn parsed() -> Option<&'static Self> {
        static DIGEST: LazyLock<Option<Digest>> =
            LazyLock::new(|| serde_json::from_str(include_str!("schema.json")).ok());
        DIGEST.as_ref()
    }

    fn enums() -> &'static BTreeMap<String, Vec<String>> {
        static NONE: BTreeMap<String, Vec<String>> = BTreeMap::new();
        Self::parsed().map_or(&NONE, |d| &d.enums)
    }

    fn read() -> Option<Schema> {
        let digest = Self::parsed()?;
        let classes = digest.classes.iter().map(|(name, class)| {
            let fields = class.fields.iter().filter_map(|f| field(f)).collect();
            let mut messages: BTreeMap<_, _> =
                class.messages.iter().filter_map(|m| Some((m.name.clone(), message(m)?))).collect();
            if messages.contains_key("get_all") {
                messages.extend(undocumented(name));
            }
            (name.clone(), Class { name: name.clone(), fields, messages })
        });
        let relations = digest.relations.iter().cloned();
        Some(Schema {
            classes: classes.collect(),
            enums: digest.enums.clone(),
            relations: relations.map(|(many, field, one, set)| Relation { many, field, one, set }).collect(),
            tables: digest.tables.clone(),
        })
    }
}

fn field(row: &[String]) -> Option<Field> {
    let (name, kind, qualifier) = (row.first()?, Type::parse(row.get(1)?), row.get(2)?);
    let qualifier = match qualifier.as_str() {
        "RW" => Qualifier::Rw,
        "RO/constructor" => Qualifier::Constructor,
        _ => Qualifier::Runtime,
    };
    // The published model prints its defaults in the notation of the daemon's own language.
    let default = row.get(3).map(|text| match &kind {
        Type::Int => text.parse::<i64>().map_or_else(|_| kind.zero(), Value::from),
        Type::Float => text.parse::<f64>().map_or_else(|_| kind.zero(), Value::from),
        Type::Bool => json!(text == "true"),
        Type::String => json!(text.trim_matches('"')),
        Type::Enum(_) | Type::DateTime => json!(text),
        Type::Void | Type::Ref(_) | Type::Set(_) | Type::Map(..) | Type::Record(_) | Type::Other => kind.zero(),
    });
    Some(Field { name: name.clone(), kind, qualifier, default })
}

/// Every class that lists its objects filters them, too, though no document says so (xapi.md 8).
fn undocumented(class: &str) -> impl Iterator<Item = (String, Message)> {
    let reference = Type::Ref(class.to_owned());
    let records = Type::Map(Box::new(reference.clone()), Box::new(Type::Record(class.to_owned())));
    let results = [("get_all_where", Type::Set(Box::new(reference))), ("get_all_records_where", records)];
    results.into_iter().map(|(name, result)| {
        let params = vec![Param { name: "expr".to_owned(), kind: Type::String, default: None }];
        let (name, role) = (name.to_owned(), "read-only".to_owned());
        (name.clone(), Message { name, params, result, role, implicit: true, sessionless: false, removed: false })
    })
}

fn message(m: &DigestMessage) -> Option<Message> {
    let params = m.params.iter().map(|p| {
        let (name, kind) = (p.first()?.as_str()?.to_owned(), Type::parse(p.get(1)?.as_str()?));
        Some(Param { name, kind, default: p.get(2).cloned() })
    });
    Some(Message {
        name: m.name.clone(),
        params: params.collect::<Option<_>>()?,
        result: Type::parse(&m.result),
        role: m.role.clone(),
        implicit: m.implicit,
        sessionless: m.sessionless,
        removed: m.removed,
    })
}
