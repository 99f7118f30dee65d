//! Whether the page can be read: by everybody, in light and dark, on a phone and on paper.

use browser::{VIEWS, View};
use serde_json::json;

use crate::fixture::{Yard, opened};

#[test]
fn axe_finds_nothing_in_light_and_dark_on_desktop_and_phone() {
    let yard = Yard::quick();
    let file = yard.page("quick = [\"runs/quick\"]");
    for view in VIEWS {
        let mut page = opened(&file, view);
        page.eval("document.querySelectorAll('details').forEach(d => d.open = true)");
        assert_eq!(page.axe(), json!([]), "{view:?}");
    }
}

#[test]
fn the_theme_follows_the_system_and_the_button() {
    let yard = Yard::quick();
    let file = yard.page("quick = [\"runs/quick\"]");
    let mut page = opened(&file, View { width: 1280, dark: false });
    let ground = "getComputedStyle(document.body).backgroundColor";
    let (light, dark) = ("rgb(246, 247, 249)", "rgb(20, 23, 27)");
    assert_eq!(page.eval(ground), light);
    page.view(View { width: 1280, dark: true });
    assert_eq!(page.eval(ground), dark);
    page.eval("document.getElementById('theme').focus()");
    page.key("Enter");
    assert_eq!(
        (page.eval(ground), page.eval("document.getElementById('theme').textContent")),
        (light.into(), "Theme: light".into())
    );
    page.key("Enter");
    page.view(View { width: 1280, dark: false });
    assert_eq!(page.eval(ground), dark);
}

#[test]
fn nothing_is_wider_than_the_page() {
    let yard = Yard::quick();
    let file = yard.page("quick = [\"runs/quick\"]");
    for width in [360, 390, 768, 1280] {
        let mut page = opened(&file, View { width, dark: false });
        page.eval("document.querySelectorAll('details').forEach(d => d.open = true)");
        assert_eq!(page.too_wide(".scroll, .unseen, .skip, svg"), json!([]), "at {width}");
        assert!(
            page.eval("document.documentElement.scrollWidth").as_u64().unwrap() <= u64::from(width)
        );
    }
}

#[test]
fn everything_is_reached_by_the_tab_key_in_order() {
    let yard = Yard::quick();
    let file = yard.page("quick = [\"runs/quick\"]");
    let mut page = opened(&file, View { width: 1280, dark: false });
    let mut seen = Vec::new();
    for _ in 0..12 {
        page.key("Tab");
        seen.push(page.eval("document.activeElement.textContent.trim().slice(0, 12)"));
        let outline = page.eval("getComputedStyle(document.activeElement).outlineStyle");
        let node = page.eval("document.activeElement.matches('.node')");
        assert!(outline == "solid" || node == true, "no focus ring: {seen:?}");
    }
    assert_eq!(seen[..3], [json!("Skip to the "), json!("Stages"), json!("Learning cur")]);
    let backwards = page
        .eval("[...document.querySelectorAll('[tabindex]')].filter(e => e.tabIndex > 0).length");
    assert_eq!(backwards, 0);
}

#[test]
fn it_prints() {
    let yard = Yard::quick();
    let file = yard.page("quick = [\"runs/quick\"]");
    let mut page = opened(&file, View { width: 1280, dark: true });
    page.call(
        "Emulation.setEmulatedMedia",
        &json!({"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}),
    );
    assert_eq!(page.eval("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)");
    assert_eq!(page.eval("getComputedStyle(document.body).color"), "rgb(0, 0, 0)");
    assert_eq!(page.eval("getComputedStyle(document.querySelector('nav')).display"), "none");
    let printed = page.call("Page.printToPDF", &json!({}));
    assert!(printed["data"].as_str().is_some_and(|pdf| pdf.starts_with("JVBERi0")), "no PDF");
    assert_eq!(page.complaints(), [""; 0]);
}
