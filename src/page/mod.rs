//! Pages that open offline: one HTML file with its style sheet and its charts inside.

mod chart;
pub mod live;
pub mod report;
pub(crate) mod svg;
mod words;

pub(crate) use words::escape;

/// A whole page with its style sheet around `body`, which must be HTML already; a browser loads it again
/// after `refresh` seconds, if there are any.
pub(crate) fn document(title: &str, body: &str, refresh: Option<u64>) -> String {
    let title = escape(title);
    let refresh = refresh.map_or(String::new(), |seconds| {
        format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">\n")
    });
    let style = include_str!("style.css");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         {refresh}<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// Names and values as the page's last part.
pub(crate) fn facts(facts: &[(String, String)]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let mut html = String::from("<h2>About this run</h2>\n<div class=\"card\"><dl>\n");
    for (name, value) in facts {
        let value = match value.trim_end() {
            text if text.contains('\n') => format!("<pre>{}</pre>", escape(text)),
            text => escape(text),
        };
        html.push_str(&format!("<dt>{}</dt><dd>{value}</dd>\n", escape(name)));
    }
    html.push_str("</dl></div>\n");
    html
}
