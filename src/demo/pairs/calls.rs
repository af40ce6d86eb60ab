//! The string arguments of a call in Rust source: a small lexer that knows comments, character
//! literals and lifetimes, and every form of string literal, and nothing else of the language.

use std::collections::HashMap;
use std::iter::Peekable;
use std::str::CharIndices;

/// What the lexer tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Text(String),
    Punct(char),
}

/// First and last argument of every call of `function` in `source` whose first and last arguments
/// are string literals, or names that a `let` before the call gave a string literal.
///
/// Calls with other arguments, comments and the function's own definition yield nothing. Text that
/// is not valid Rust yields what could be read up to the place that is not.
pub(super) fn string_arguments(source: &str, function: &str) -> Vec<(String, String)> {
    let tokens = tokens(source);
    let mut named: HashMap<&str, &str> = HashMap::new();
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        match &tokens[at..] {
            [Token::Word("let"), Token::Word(name), rest @ ..] => match rest {
                [Token::Punct('='), Token::Text(text), Token::Punct(';'), ..] => {
                    named.insert(name, text);
                }
                // A name given anything else no longer means the old string.
                _ => {
                    named.remove(name);
                }
            },
            [Token::Word(called), Token::Punct('('), rest @ ..]
                if *called == function && !follows_fn(&tokens[..at]) =>
            {
                let arguments = arguments(rest);
                let text = |argument: &[Token]| match argument {
                    [Token::Text(text)] => Some(text.clone()),
                    [Token::Word(name)] => named.get(name).map(|text| (*text).to_owned()),
                    _ => None,
                };
                if let [first, .., last] = &arguments[..]
                    && let (Some(first), Some(last)) = (text(first), text(last))
                {
                    found.push((first, last));
                }
            }
            _ => {}
        }
    }
    found
}

fn follows_fn(before: &[Token]) -> bool {
    matches!(before.last(), Some(Token::Word("fn")))
}

/// The arguments of a call, given the tokens after its opening parenthesis; none if it never ends.
fn arguments<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut arguments = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Punct('(' | '[' | '{') => depth += 1,
            Token::Punct(',') if depth == 0 => {
                arguments.push(&tokens[start..at]);
                start = at + 1;
            }
            Token::Punct(')' | ']' | '}') if depth == 0 => {
                if start < at {
                    arguments.push(&tokens[start..at]);
                }
                return arguments;
            }
            Token::Punct(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
    }
    Vec::new()
}

/// The tokens of `source`, as far as it can be read.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer { source, chars: source.char_indices().peekable() };
    let mut tokens = Vec::new();
    while let Some((at, c)) = lexer.chars.next() {
        match c {
            _ if c.is_whitespace() => {}
            '/' if lexer.rest().starts_with('/') => lexer.skip_line(),
            '/' if lexer.rest().starts_with('*') => lexer.skip_block_comment(),
            '\'' => lexer.skip_char_or_lifetime(),
            '"' => match lexer.cooked_string() {
                Some(text) => tokens.push(Token::Text(text)),
                None => break,
            },
            _ if c.is_alphanumeric() || c == '_' => {
                let word = lexer.word(at);
                match lexer.prefixed_string(word) {
                    Prefixed::No => tokens.push(Token::Word(word)),
                    Prefixed::Text(text) => tokens.push(Token::Text(text)),
                    Prefixed::Bytes => tokens.push(Token::Punct('b')),
                    Prefixed::Unfinished => break,
                }
            }
            _ => tokens.push(Token::Punct(c)),
        }
    }
    tokens
}

/// A word and the quote that may follow it at once: `r"`, `r#"`, `b"`, `br"`, `c"`, `cr"`, `b'`.
enum Prefixed {
    No,
    Text(String),
    Bytes,
    Unfinished,
}

struct Lexer<'a> {
    source: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl<'a> Lexer<'a> {
    fn position(&mut self) -> usize {
        self.chars.peek().map_or(self.source.len(), |(at, _)| *at)
    }

    fn rest(&mut self) -> &'a str {
        let at = self.position();
        &self.source[at..]
    }

    fn skip_bytes(&mut self, count: usize) {
        let end = self.position() + count;
        while self.chars.next_if(|(at, _)| *at < end).is_some() {}
    }

    fn skip_line(&mut self) {
        while self.chars.next_if(|(_, c)| *c != '\n').is_some() {}
    }

    /// Block comments nest in Rust. The opening slash is behind us.
    fn skip_block_comment(&mut self) {
        self.skip_bytes(1);
        let mut depth = 1;
        while depth > 0 {
            let rest = self.rest();
            if rest.starts_with("*/") {
                depth -= 1;
                self.skip_bytes(2);
            } else if rest.starts_with("/*") {
                depth += 1;
                self.skip_bytes(2);
            } else if self.chars.next().is_none() {
                return;
            }
        }
    }

    /// Behind a single quote: `'x'` and `'\n'` are characters (and `'"'` opens no string), `'a` is
    /// a lifetime.
    fn skip_char_or_lifetime(&mut self) {
        let mut ahead = self.rest().chars();
        match (ahead.next(), ahead.next()) {
            (Some('\\'), _) => {
                self.chars.next();
                self.chars.next();
                while self.chars.next().is_some_and(|(_, c)| c != '\'' && c != '\n') {}
            }
            (Some(_), Some('\'')) => {
                self.chars.next();
                self.chars.next();
            }
            _ => {}
        }
    }

    fn word(&mut self, start: usize) -> &'a str {
        while self.chars.next_if(|(_, c)| c.is_alphanumeric() || *c == '_').is_some() {}
        let end = self.position();
        &self.source[start..end]
    }

    fn prefixed_string(&mut self, word: &str) -> Prefixed {
        let rest = self.rest();
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        let raw = matches!(word, "r" | "br" | "cr") && rest[hashes..].starts_with('"');
        let cooked = matches!(word, "b" | "c") && rest.starts_with('"');
        let text = if raw {
            self.skip_bytes(hashes + 1);
            self.raw_string(hashes)
        } else if cooked {
            self.skip_bytes(1);
            self.cooked_string()
        } else if word == "b" && rest.starts_with('\'') {
            self.skip_bytes(1);
            self.skip_char_or_lifetime();
            return Prefixed::Bytes;
        } else {
            return Prefixed::No;
        };
        match text {
            None => Prefixed::Unfinished,
            Some(text) if word == "r" => Prefixed::Text(text),
            Some(_) => Prefixed::Bytes,
        }
    }

    /// Behind the opening quote of `r##"…"##`: everything stands for itself.
    fn raw_string(&mut self, hashes: usize) -> Option<String> {
        let end = format!("\"{}", "#".repeat(hashes));
        let rest = self.rest();
        let length = rest.find(&end)?;
        self.skip_bytes(length + end.len());
        Some(rest[..length].to_owned())
    }

    /// Behind the opening quote of `"…"`: escapes are resolved; a backslash at a line's end
    /// swallows the line break and the white space after it.
    fn cooked_string(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            let (_, c) = self.chars.next()?;
            match c {
                '"' => return Some(text),
                '\\' => match self.chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    '0' => text.push('\0'),
                    quoted @ ('\\' | '"' | '\'') => text.push(quoted),
                    '\n' | '\r' => {
                        while self.chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
                    }
                    'x' => {
                        let digits = self.rest().get(..2)?;
                        text.push(char::from(u8::from_str_radix(digits, 16).ok()?));
                        self.skip_bytes(2);
                    }
                    'u' => {
                        let (digits, _) = self.rest().strip_prefix('{')?.split_once('}')?;
                        let code = u32::from_str_radix(&digits.replace('_', ""), 16).ok()?;
                        text.push(char::from_u32(code)?);
                        self.skip_bytes(digits.len() + 2);
                    }
                    _ => return None,
                },
                _ => text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(source: &str) -> Vec<(String, String)> {
        string_arguments(source, "check")
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
    fn grammar_calls_survive_broken_source() {
        for source in
            ["check(\"a", "check(\"a\", R", "check(r#\"a\"", "check(\"\\q\")", "/* /*", "'"]
        {
            assert_eq!(calls(source), [], "{source}");
        }
        one("check(\"a\", R, \"b\"); check(\"\\u{zz}\", R, \"b\")", "a", "b");
    }
}
