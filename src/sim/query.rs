//! The expression language of `get_all_records_where` (xapi.md 8): equality of serialised fields, nothing more.
//!
//! `and`, `or` and `not` have no precedence among them: each takes everything to its right.

use serde_json::Value;

use super::schema::{Class, Record};
use crate::xapi::wire::Failure;

/// Deeper expressions are refused.
const DEPTH: usize = 64;

#[derive(Debug, PartialEq)]
pub enum Expression {
    Constant(bool),
    Equal(Term, Term),
    Not(Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
}

#[derive(Debug, PartialEq)]
pub enum Term {
    Field(String),
    Literal(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Quoted(String),
    Sign(char),
}

/// # Errors
/// `INVALID_VALUE [expr, text]` where the text is no expression.
pub fn parse(text: &str) -> Result<Expression, Failure> {
    let tokens = tokens(text);
    let parsed = tokens.as_deref().and_then(|tokens| expression(tokens, 0)).filter(|(_, rest)| rest.is_empty());
    parsed.map(|(e, _)| e).ok_or_else(|| Failure::new("INVALID_VALUE", [text, "Failed to parse expression"]))
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        match c {
            '(' | ')' | '=' => {
                tokens.push(Token::Sign(c));
                rest = rest.get(1..)?;
            }
            '"' | '\'' => {
                let (quoted, after) = rest.get(1..)?.split_once(c)?;
                tokens.push(Token::Quoted(quoted.to_owned()));
                rest = after;
            }
            _ => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                if word.is_empty() {
                    return None;
                }
                tokens.push(Token::Word(word.to_owned()));
                rest = after;
            }
        }
        rest = rest.trim_start();
    }
    Some(tokens)
}

fn expression(tokens: &[Token], depth: usize) -> Option<(Expression, &[Token])> {
    let (left, rest) = operand(tokens, depth)?;
    let join = match rest.first() {
        Some(Token::Word(w)) if w == "and" => Expression::And,
        Some(Token::Word(w)) if w == "or" => Expression::Or,
        _ => return Some((left, rest)),
    };
    let (right, rest) = expression(rest.get(1..)?, depth + 1)?;
    Some((join(Box::new(left), Box::new(right)), rest))
}

fn operand(tokens: &[Token], depth: usize) -> Option<(Expression, &[Token])> {
    let (first, rest) = tokens.split_first().filter(|_| depth < DEPTH)?;
    match first {
        Token::Sign('(') => {
            let (inner, rest) = expression(rest, depth + 1)?;
            Some((inner, rest.strip_prefix(&[Token::Sign(')')])?))
        }
        Token::Word(w) if w == "true" || w == "false" => Some((Expression::Constant(w == "true"), rest)),
        Token::Word(w) if w == "not" => {
            let (inner, rest) = expression(rest, depth + 1)?;
            Some((Expression::Not(Box::new(inner)), rest))
        }
        Token::Word(_) | Token::Quoted(_) | Token::Sign(_) => {
            let (left, rest) = term(tokens)?;
            let (right, rest) = term(rest.strip_prefix(&[Token::Sign('=')])?)?;
            Some((Expression::Equal(left, right), rest))
        }
    }
}

fn term(tokens: &[Token]) -> Option<(Term, &[Token])> {
    match tokens {
        [Token::Word(w), Token::Quoted(name), rest @ ..] if w == "field" => Some((Term::Field(name.clone()), rest)),
        [Token::Quoted(text), rest @ ..] => Some((Term::Literal(text.clone()), rest)),
        _ => None,
    }
}

/// Database names have `__` between a namespace and a name: `name__label`.
fn column(name: &str) -> String {
    name.replacen("__", "_", 1)
}

/// # Errors
/// `INTERNAL_ERROR` for a column that the class lacks; `name_label` is one: the database calls it `name__label`.
pub fn check(expression: &Expression, class: &Class) -> Result<(), Failure> {
    let known = |term: &Term| match term {
        Term::Literal(_) => true,
        Term::Field(name) => {
            class.field(&column(name)).is_some() && !matches!(name.as_str(), "name_label" | "name_description")
        }
    };
    match expression {
        Expression::Constant(_) => Ok(()),
        Expression::Not(inner) => check(inner, class),
        Expression::And(a, b) | Expression::Or(a, b) => check(a, class).and_then(|()| check(b, class)),
        Expression::Equal(a, b) if known(a) && known(b) => Ok(()),
        Expression::Equal(..) => {
            let text = format!("Db_exn.DBCache_NotFound(\"missing column\", \"{}\", \"\")", class.name);
            Err(Failure::new("INTERNAL_ERROR", [text]))
        }
    }
}

pub fn holds(expression: &Expression, row: &Record) -> bool {
    match expression {
        Expression::Constant(b) => *b,
        Expression::Not(inner) => !holds(inner, row),
        Expression::And(a, b) => holds(a, row) && holds(b, row),
        Expression::Or(a, b) => holds(a, row) || holds(b, row),
        Expression::Equal(a, b) => matches!((text(a, row), text(b, row)), (Some(a), Some(b)) if a == b),
    }
}

/// Sets and maps compare as one serialised string that no client writes: they match nothing (xapi.md 14, Tasks).
fn text(term: &Term, row: &Record) -> Option<String> {
    match term {
        Term::Literal(text) => Some(text.clone()),
        Term::Field(name) => match row.get(&column(name))? {
            Value::String(s) => Some(s.clone()),
            Value::Bool(b) => Some(b.to_string()),
            Value::Number(n) => Some(n.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expressions_filter_rows() {
        let Value::Object(row) =
            json!({"name_label": "x", "SR": "OpaqueRef:s", "is_a_snapshot": false, "other_config": {}})
        else {
            unreachable!()
        };
        for (text, expected) in [
            ("field \"name__label\" = \"x\"", true),
            ("(field \"SR\" = \"OpaqueRef:s\") and (field \"is_a_snapshot\" = \"true\")", false),
            ("true", true),
            ("not false", true),
            ("not (field 'SR' = 'y') and (true)", true),
            ("field \"other_config\" = \"()\"", false),
            // No precedence: the first `and` takes all that follows.
            ("(false) and (false) or (true)", false),
        ] {
            assert_eq!(holds(&parse(text).unwrap(), &row), expected, "{text}");
        }
        for broken in ["", "field", "(true", "field \"a\" =", "true true", "field \"a\" = \"b", "%"] {
            assert_eq!(parse(broken).unwrap_err().code, "INVALID_VALUE", "{broken}");
        }
    }
}
