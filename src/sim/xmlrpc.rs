//! XML-RPC, as XAPI writes and reads it (xapi.md 1.2, 1.3, 14): integers as strings, no white space between tags, map keys not escaped.
//!
//! Used by [`super::http`] for `POST /` and `/RPC2`, and by [`super::task`], since `task.result` is a fragment of it. Knows shapes only.

use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::{Map, Number, Value, json};

use super::Answer;
use super::schema::{Type, schema};

/// Deeper documents are refused: real calls nest five values or so.
const DEPTH: usize = 64;

/// `methodName` and `params` of a call; `None` where the document is none.
pub fn parse(body: &str) -> Option<(String, Vec<Value>)> {
    let call = read(body)?;
    let (method, params) = match call.children.as_slice() {
        [name] => (name, [].as_slice()),
        [name, params] if params.name == "params" => (name, params.children.as_slice()),
        _ => return None,
    };
    if call.name != "methodCall" || method.name != "methodName" {
        return None;
    }
    let values = params.iter().map(|p| value(p.children.first()?)).collect::<Option<_>>()?;
    Some((method.text.trim().to_owned(), values))
}

#[derive(Default)]
struct Node {
    name: String,
    text: String,
    children: Vec<Node>,
}

fn read(body: &str) -> Option<Node> {
    let mut reader = Reader::from_str(body);
    let mut open = vec![Node::default()];
    loop {
        let event = reader.read_event().ok()?;
        match event {
            Event::Start(tag) if open.len() < DEPTH => {
                open.push(Node { name: tag.name().as_ref().to_owned(), ..Node::default() });
            }
            Event::Start(_) => return None,
            Event::Empty(tag) => {
                let name = tag.name().as_ref().to_owned();
                open.last_mut()?.children.push(Node { name, ..Node::default() });
            }
            Event::End(_) => {
                let done = open.pop()?;
                open.last_mut()?.children.push(done);
            }
            Event::Text(text) => open.last_mut()?.text.push_str(&text.xml10_content()),
            Event::CData(text) => open.last_mut()?.text.push_str(&text),
            Event::GeneralRef(entity) => {
                let c = match entity.resolve_char_ref().ok()? {
                    Some(c) => c.to_string(),
                    None => quick_xml::escape::resolve_predefined_entity(&entity)?.to_owned(),
                };
                open.last_mut()?.text.push_str(&c);
            }
            Event::Eof => break,
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
    let mut root = open.pop().filter(|_| open.is_empty())?;
    root.children.pop().filter(|_| root.children.is_empty())
}

fn value(node: &Node) -> Option<Value> {
    if node.name != "value" {
        return None;
    }
    let Some(inner) = node.children.first() else { return Some(json!(node.text)) };
    let text = inner.text.as_str();
    Some(match inner.name.as_str() {
        "string" | "dateTime.iso8601" | "base64" => json!(text),
        "int" | "i4" | "i8" => json!(text.trim().parse::<i64>().ok()?),
        "double" => json!(text.trim().parse::<f64>().ok()?),
        "boolean" => json!(text.trim() == "1"),
        "nil" => Value::Null,
        "array" => inner.children.first()?.children.iter().map(value).collect::<Option<Vec<_>>>()?.into(),
        "struct" => {
            let member = |m: &Node| {
                let [name, v] = m.children.as_slice() else { return None };
                Some((name.text.clone(), value(v)?))
            };
            Value::Object(inner.children.iter().map(member).collect::<Option<Map<_, _>>>()?)
        }
        _ => return None,
    })
}

/// The whole answer to a call.
pub fn response(answer: &Answer, kind: &Type) -> String {
    let fields = match answer {
        Ok(v) => {
            member("Status", "<value>Success</value>") + &member("Value", &format!("<value>{}</value>", inner(v, kind)))
        }
        Err(failure) => {
            let list: Vec<Value> = std::iter::once(&failure.code).chain(&failure.params).map(|s| json!(s)).collect();
            let list = fragment(&list.into(), &Type::Set(Box::new(Type::String)));
            member("Status", "<value>Failure</value>") + &member("ErrorDescription", &list)
        }
    };
    let value = format!("<value><struct>{fields}</struct></value>");
    format!("<?xml version=\"1.0\"?><methodResponse><params><param>{value}</param></params></methodResponse>")
}

/// One value with its tags, as `task.result` holds it; nothing for void.
pub fn fragment(v: &Value, kind: &Type) -> String {
    match kind {
        Type::Void => String::new(),
        _ => format!("<value>{}</value>", inner(v, kind)),
    }
}

fn member(name: &str, value: &str) -> String {
    // The daemon does not escape names: a key with `<` or `&` breaks the reply, here as there (xapi.md 14, Sessions).
    format!("<member><name>{name}</name>{value}</member>")
}

fn inner(v: &Value, kind: &Type) -> String {
    match (v, kind) {
        (Value::String(s), Type::DateTime) => format!("<dateTime.iso8601>{s}</dateTime.iso8601>"),
        (Value::String(s), Type::Float) => format!("<double>{s}</double>"),
        (Value::String(s), _) => quick_xml::escape::escape(s.as_str()).into_owned(),
        (Value::Number(n), Type::Float) => format!("<double>{}</double>", float(n)),
        (Value::Number(n), _) if n.is_f64() => format!("<double>{}</double>", float(n)),
        (Value::Number(n), _) => n.to_string(),
        (Value::Bool(b), _) => format!("<boolean>{}</boolean>", i32::from(*b)),
        (Value::Null, _) => "<nil/>".to_owned(),
        (Value::Array(items), kind) => {
            let kind = if let Type::Set(inner) = kind { inner } else { &Type::Other };
            let items: String = items.iter().map(|v| format!("<value>{}</value>", inner(v, kind))).collect();
            format!("<array><data>{items}</data></array>")
        }
        (Value::Object(map), kind) => {
            let members: String = map
                .iter()
                .map(|(k, v)| member(k, &format!("<value>{}</value>", inner(v, &entry(map, k, kind)))))
                .collect();
            format!("<struct>{members}</struct>")
        }
    }
}

fn float(n: &Number) -> String {
    n.as_f64().map(|f| format!("{f:?}")).unwrap_or_default()
}

/// The type of one entry of a struct. An event says which class its snapshot is of.
fn entry(map: &Map<String, Value>, key: &str, kind: &Type) -> Type {
    let class = match kind {
        Type::Map(_, inner) => return (**inner).clone(),
        Type::Record(class) => schema().class(class),
        _ if key == "snapshot" => {
            let class = map.get("class").and_then(Value::as_str).and_then(|c| schema().class_in_any_case(c));
            return class.map_or(Type::Other, |c| Type::Record(c.name.clone()));
        }
        _ => None,
    };
    class.and_then(|c| c.field(key)).map_or(Type::Other, |f| f.kind.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xapi::wire::Failure;

    #[test]
    fn a_call_with_every_kind_of_value_is_read() {
        let body = "<?xml version='1.0'?>\n<methodCall>\n<methodName>VM.create</methodName>\n<params>\n<param><value>s&amp;1</value></param>\
            <param><value><struct><member><name>a&#98;</name><value><i4>1</i4></value></member></struct></value></param>\
            <param><value><array><data><value><boolean>1</boolean></value><value/></data></array></value></param></params></methodCall>";
        let (method, params) = parse(body).unwrap();
        assert_eq!((method.as_str(), params), ("VM.create", vec![json!("s&1"), json!({"ab": 1}), json!([true, ""])]));
        for broken in
            ["", "<methodCall>", "<a/>", "<methodCall><methodName>x</methodName><params><param/></params></methodCall>"]
        {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn replies_have_no_white_space_and_integers_are_strings() {
        let kind = Type::Map(Box::new(Type::String), Box::new(Type::Other));
        let text = response(&Ok(json!({"<k": [5, 0.5, true, "a<b"]})), &kind);
        assert!(
            text.contains(
                "<member><name><k</name><value><array><data><value>5</value><value><double>0.5</double></value>"
            ),
            "{text}"
        );
        assert!(
            text.contains("<value><boolean>1</boolean></value><value>a&lt;b</value>") && !text.contains("> <"),
            "{text}"
        );
        let text = response(&Err(Failure::new("VDI_IN_USE", ["r"])), &Type::Void);
        assert!(
            text.contains("<name>ErrorDescription</name><value><array><data><value>VDI_IN_USE</value><value>r</value>"),
            "{text}"
        );
    }
}
