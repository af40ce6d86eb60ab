//! A template's text before it is compiled: what the compiler could not stand is refused, and what
//! only transformers knows is put in its words.

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Longest source in bytes; the longest of known models has a tenth of it.
const LONGEST: usize = 1 << 20;
/// Most tokens within one tag: the compiler descends once for each link of a chain
/// (`not not …`, `a.b.c…`, `1+1+…`), and the stack of [`on_own_stack`](crate::guard::on_own_stack)
/// has room for so many.
const TAG_TOKENS: usize = 4_000;
/// Most `elif` in a template; each nests the rest of its chain.
const ELIFS: usize = 1_000;

/// The filter that [`prepare`] puts around every value assigned to a namespace.
pub(super) const KEPT: &str = "oddgrad_kept";

/// The source as it is compiled: line ends as Jinja2 reads them, `{% generation %}` (which marks
/// the assistant's words for transformers' masks and renders nothing) as a block without effect,
/// and every value that is kept in a namespace passed through the filter [`KEPT`].
///
/// Errors: a source that is too long, or with a longer chain than the compiler could stand.
pub(super) fn prepare(source: &str, syntax: &SyntaxConfig) -> Result<String, String> {
    if source.len() > LONGEST {
        return Err(format!("it is longer than {} KiB", LONGEST >> 10));
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut edits = Edits::default();
    let (mut elifs, mut tag) = (0, Vec::new());
    for token in tokenize(&source, false, syntax.clone()) {
        let (token, span) = token.map_err(|e| super::explain(&e))?;
        match token {
            Token::TemplateData(_) => {}
            Token::VariableStart | Token::BlockStart => tag.clear(),
            Token::VariableEnd => tag.clear(),
            Token::BlockEnd => {
                elifs += usize::from(matches!(tag.first(), Some((Token::Ident("elif"), _))));
                edits.tag(&tag, span);
                tag.clear();
            }
            token => tag.push((token, span)),
        }
        if tag.len() > TAG_TOKENS {
            let line = span.start_line;
            return Err(format!("a tag has more than {TAG_TOKENS} words (template line {line})"));
        }
    }
    if elifs > ELIFS {
        return Err(format!("it has more than {ELIFS} elif"));
    }
    Ok(edits.apply(&source))
}

/// Replacements by byte range, in the order of the source.
#[derive(Default)]
struct Edits(Vec<(std::ops::Range<usize>, String)>);

impl Edits {
    /// Looks at a statement: its tokens and the span of its end.
    fn tag(&mut self, tag: &[(Token<'_>, Span)], end: Span) {
        let range = |span: Span| span.start_offset as usize..span.end_offset as usize;
        match tag {
            [(Token::Ident("generation"), span)] => self.0.push((range(*span), "if true".into())),
            [(Token::Ident("endgeneration"), span)] => self.0.push((range(*span), "endif".into())),
            [(Token::Ident("set"), _), rest @ ..] => {
                let Some(at) = rest.iter().position(|(t, _)| matches!(t, Token::Assign)) else {
                    return;
                };
                let to_attribute = rest[..at].iter().any(|(t, _)| matches!(t, Token::Dot));
                if to_attribute && let Some((_, last)) = rest[at + 1..].last() {
                    let start = rest[at].1.end_offset as usize;
                    let stop = last.end_offset as usize;
                    debug_assert!(stop <= end.start_offset as usize);
                    self.0.push((start..start, " (".into()));
                    self.0.push((stop..stop, format!(")|{KEPT}")));
                }
            }
            _ => {}
        }
    }

    fn apply(self, source: &str) -> String {
        let mut out = String::with_capacity(source.len());
        let mut done = 0;
        for (range, text) in self.0 {
            out.push_str(&source[done..range.start]);
            out.push_str(&text);
            done = range.end;
        }
        out + &source[done..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(source: &str) -> Result<String, String> {
        prepare(source, &SyntaxConfig::default())
    }

    #[test]
    fn lines_end_as_jinja_reads_them() {
        assert_eq!(prepared("a\r\n{{ 'b\r\nc' }}\rd\n").unwrap(), "a\n{{ 'b\nc' }}\nd\n");
    }

    #[test]
    fn marks_of_generation_have_no_effect() {
        assert_eq!(
            prepared("{%- generation -%}{{ '{% generation %}' }}{% endgeneration%}").unwrap(),
            "{%- if true -%}{{ '{% generation %}' }}{% endif%}"
        );
        assert_eq!(prepared("{# {% generation %} #}x").unwrap(), "{# {% generation %} #}x");
    }

    #[test]
    fn what_a_namespace_keeps_is_looked_at() {
        assert_eq!(
            prepared("{% set ns.a = b + [c] -%}{% set x = ns.a == 3 %}").unwrap(),
            format!("{{% set ns.a = ( b + [c])|{KEPT} -%}}{{% set x = ns.a == 3 %}}")
        );
    }

    #[test]
    fn long_chains_are_refused() {
        let not = format!("{{{{ {}x }}}}", "not ".repeat(30_000));
        assert!(prepared(&not).unwrap_err().contains("template line 1"));
        let elif = format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}c".repeat(10_000));
        assert!(prepared(&elif).unwrap_err().contains("elif"));
        assert!(prepared(&"x".repeat(2 << 20)).unwrap_err().contains("longer than"));
    }
}
