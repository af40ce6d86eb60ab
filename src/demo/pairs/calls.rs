//! The string arguments of a call in Rust source, read as the compiler's tokens.

use std::collections::HashMap;

use proc_macro2::{Delimiter, LexError, TokenStream, TokenTree};

/// First and last argument of every call of `function` in `source` whose first and last arguments
/// are string literals, or names that a `let` before the call gave a string literal.
///
/// Calls with other arguments, comments and the function's own definition yield nothing.
///
/// # Errors
/// When `source` is not made of Rust tokens.
pub(super) fn string_arguments(
    source: &str,
    function: &str,
) -> Result<Vec<(String, String)>, LexError> {
    let mut calls = Calls { function, named: HashMap::new(), found: Vec::new() };
    calls.walk(source.parse()?);
    Ok(calls.found)
}

struct Calls<'a> {
    function: &'a str,
    /// Names that mean a string where the walk is.
    named: HashMap<String, String>,
    found: Vec<(String, String)>,
}

impl Calls<'_> {
    /// Goes through `tokens` and what their brackets hold, in the order of the text.
    fn walk(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match (token, tokens.get(at + 1)) {
                (TokenTree::Ident(word), Some(TokenTree::Ident(name))) if word == "let" => {
                    self.bind(name.to_string(), &tokens[at + 2..]);
                }
                (TokenTree::Ident(called), Some(TokenTree::Group(arguments)))
                    if called == self.function
                        && arguments.delimiter() == Delimiter::Parenthesis
                        && !matches!(tokens[..at].last(), Some(TokenTree::Ident(i)) if i == "fn") =>
                {
                    self.call(arguments.stream());
                }
                (TokenTree::Group(group), _) => self.walk(group.stream()),
                _ => {}
            }
        }
    }

    /// `let name` followed by `rest`. A name given anything but a literal means no string any more.
    fn bind(&mut self, name: String, rest: &[TokenTree]) {
        match rest {
            [TokenTree::Punct(equals), value, TokenTree::Punct(end), ..]
                if equals.as_char() == '=' && end.as_char() == ';' =>
            {
                match literal(value) {
                    Some(text) => self.named.insert(name, text),
                    None => self.named.remove(&name),
                }
            }
            _ => self.named.remove(&name),
        };
    }

    fn call(&mut self, arguments: TokenStream) {
        let tokens: Vec<TokenTree> = arguments.into_iter().collect();
        let is_comma = |t: &TokenTree| matches!(t, TokenTree::Punct(p) if p.as_char() == ',');
        let arguments: Vec<&[TokenTree]> =
            tokens.split(is_comma).filter(|argument| !argument.is_empty()).collect();
        let text = |argument: &[TokenTree]| match argument {
            [TokenTree::Ident(name)] => self.named.get(&name.to_string()).cloned(),
            [value] => literal(value),
            _ => None,
        };
        if let [first, .., last] = arguments[..]
            && let (Some(first), Some(last)) = (text(first), text(last))
        {
            self.found.push((first, last));
        }
    }
}

/// The text of a string literal, escapes resolved; None for anything else.
fn literal(token: &TokenTree) -> Option<String> {
    let TokenTree::Literal(literal) = token else { return None };
    match syn::Lit::new(literal.clone()) {
        syn::Lit::Str(text) => Some(text.value()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(source: &str) -> Vec<(String, String)> {
        string_arguments(source, "check").unwrap()
    }

    #[track_caller]
    fn one(source: &str, first: &str, last: &str) {
        assert_eq!(calls(source), [(first.to_owned(), last.to_owned())]);
    }

    #[test]
    fn grammar_calls_plain_and_spread_over_lines() {
        one(r#"check("a b", Rule::default(), "c d");"#, "a b", "c d");
        one("check(\n  \"a\",\n  rule(1, [2, 3], \"x\"),\n  \"b\",\n)", "a", "b");
        one(r#"x::check ( "a" , "b" )"#, "a", "b");
    }

    #[test]
    fn grammar_calls_resolve_escapes() {
        one(r#"check("say \"a\\b\"", R, "it\'s \u{2019}\x41\t.")"#, "say \"a\\b\"", "it's ’A\t.");
        one("check(\"one \\\n      line\", R, \"two\nlines\")", "one line", "two\nlines");
    }

    #[test]
    fn grammar_calls_read_raw_strings() {
        one(r##"check(r#"the "a" \n"#, R, r"b\")"##, "the \"a\" \\n", "b\\");
        one("check(r##\"a\"# b\"##, R, \"c\")", "a\"# b", "c");
    }

    #[test]
    fn grammar_calls_are_not_fooled_by_comments_and_quotes() {
        one(
            r#"// check("no", R, "no");
               /* check("no", /* nested */ R, "no"); */
               let quote = '"'; let escaped = '\''; fn f<'a>(x: &'a str) {}
               check("it's // not a comment", |c: char| c == ')' , "a /* b */");"#,
            "it's // not a comment",
            "a /* b */",
        );
        assert_eq!(calls(r#"let s = "check(\"a\", R, \"b\")"; recheck("a", R, "b");"#), []);
    }

    #[test]
    fn grammar_calls_follow_names_given_a_literal() {
        one(r#"let text = "a"; let right = "b"; check(text, R, right);"#, "a", "b");
        assert_eq!(calls(r#"let text = "a"; let text = f("x"); check(text, R, "b");"#), []);
        assert_eq!(calls(r#"let text = "a"; let text = other; check(text, R, "b");"#), []);
    }

    #[test]
    fn grammar_calls_leave_everything_else() {
        assert_eq!(calls(r#"fn check(text: &str, needle: &str) {}"#), []);
        assert_eq!(calls(r#"check(&format!("a"), R, "b"); check("a", R, f("b"));"#), []);
        assert_eq!(calls(r#"check(b"a", R, "b"); check("a", R, c"b"); check("a");"#), []);
    }

    #[test]
    fn grammar_calls_refuse_what_is_not_rust() {
        for source in ["check(\"a", "check(\"a\", R", "check(r#\"a\"", "check(\"\\q\")", "/* /*"] {
            assert!(string_arguments(source, "check").is_err(), "{source}");
        }
    }
}
