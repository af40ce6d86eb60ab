use super::*;
use crate::dtype::DType;
use std::sync::Arc;

const NOTHING: Variant = Variant {
    path: "",
    source: "",
    needs: Needs::NONE,
    tile: [1; 3],
    tile_name: "",
    constants: &[],
    default_on: ANY,
    takes: Takes::WORDS,
    tolerance: 0.0,
};

/// A call of elementwise kernels that reads and writes so many bytes.
fn facts(reads: u64, writes: u64) -> Facts {
    Facts { operands: Vec::new(), size: SizeClass::of(reads, writes, writes / 4) }
}

#[test]
fn specialise_rewrites_only_the_named_line() {
    let wgsl = "const N: u32 = 1u; // rows\nconst EPS: f32 = 1e-5;\nfn f() -> u32 { return N; }";
    let out = specialise(wgsl, &[("N", 7u32.into()), ("EPS", 0.25f32.into())]).unwrap();
    assert_eq!(
        out,
        "const N: u32 = 7u; // rows\nconst EPS: f32 = 2.5e-1f;\nfn f() -> u32 { return N; }"
    );
}

#[test]
fn an_unknown_constant_is_named() {
    let err = specialise("const N: u32 = 1u;", &[("M", 2u32.into())]).unwrap_err();
    assert!(err.contains("const M"), "{err}");
}

#[test]
fn size_classes_are_powers_of_four_above_the_bytes() {
    for (bytes, below) in [(0, 1), (1, 4), (3, 4), (4, 16), (1 << 20, 1 << 22), (5 << 20, 1 << 24)]
    {
        assert_eq!(SizeClass::of(bytes, 0, 0).reads_below, below, "{bytes}");
    }
    assert_eq!(SizeClass::of(0, u64::MAX, 0).writes_below, 1 << 62);
}

#[test]
fn a_product_and_its_transpose_are_tuned_apart() {
    let class = |m: u64, n: u64, k: u64| SizeClass::of(4 * k * (m + n), 4 * m * n, n);
    assert_ne!(class(1024, 128, 64), class(128, 1024, 64));
    assert_ne!(class(1024, 256, 64), class(256, 1024, 64));
    assert_eq!(class(1000, 130, 64), class(1020, 140, 64));
}

#[test]
fn choose_prefers_the_pinned_then_the_tuned_then_the_usual_kernel() {
    let pass = crate::ops::passes().into_iter().find(|p| p.full_name() == "adamw.update");
    let pass = pass.unwrap();
    let of = |target: &Target, facts: &Facts| pass.choose(target, facts).unwrap().number();
    let call = facts(1000, 1000);
    let size = call.size;
    let mut target = Target::baseline(Class::Software);
    let default = of(&target, &call);
    assert_eq!(default, pass.default_for(&target, &[]).unwrap().number());
    let other = pass.variants.iter().map(Variant::number).find(|&n| n != default).unwrap();
    target.tuned = Arc::new(Tuned::from([(("adamw.update".to_owned(), size), other.into())]));
    assert_eq!(of(&target, &call), other);
    assert_eq!(of(&target, &facts(1, 1)), default);
    target.pinned.insert("adamw.update".into(), default.into());
    assert_eq!(of(&target, &call), default);
    target.pinned.clear();
    target.tuned = Arc::new(Tuned::from([(("adamw.update".to_owned(), size), 99.into())]));
    assert_eq!(of(&target, &call), default, "an unknown number is passed over");
}

#[test]
fn usual_skips_what_is_demoted_and_what_loses_digits() {
    const fn variant(path: &'static str, tolerance: f64) -> Variant {
        Variant { path, tolerance, ..NOTHING }
    }
    static VARIANTS: [Variant; 3] =
        [variant("a/p_1_x.wgsl", 0.0), variant("a/p_2_y.wgsl", 0.0), variant("a/p_3_z.wgsl", 1e-3)];
    let pass = Pass { op: "a", name: "p", variants: &VARIANTS };
    let mut target = Target::baseline(Class::Discrete);
    assert_eq!(pass.default_for(&target, &[]).unwrap().number(), 2);
    target.demoted.insert("a/p_2_y.wgsl");
    assert_eq!(pass.default_for(&target, &[]).unwrap().number(), 1);
    target.pinned.insert("a.p".into(), 3.into());
    assert_eq!(pass.choose(&target, &facts(1, 1)).unwrap().number(), 3);
}

#[test]
fn number_and_idea_come_from_the_file_name() {
    let v = Variant { path: "matmul/nt_3_register_tile.wgsl", ..NOTHING };
    assert_eq!((v.number(), v.idea()), (3, "register_tile"));
    assert_eq!(v.name(), "3 register_tile");
    let shared = Variant { path: "matmul/nn_tn_7_vec4_tile.wgsl", ..NOTHING };
    assert_eq!((shared.number(), shared.idea()), (7, "vec4_tile"));
}

#[test]
fn a_variant_is_named_by_number_and_tile() {
    for text in ["3", "11/128x64"] {
        assert_eq!(text.parse::<VariantId>().unwrap().to_string(), text);
    }
    for text in ["", "x", "11/", "/128x64", "-1"] {
        assert!(text.parse::<VariantId>().is_err(), "{text}");
    }
}

#[test]
fn tiles_of_a_file_are_variants_of_their_own() {
    const SOURCE: &str = "const SIDE: u32 = 4u;\nf";
    const SMALL: Tile = Tile { name: "8x4", outputs: [4, 8, 1], constants: &[] };
    const LARGE: Tile =
        Tile { name: "8x8", outputs: [8, 8, 1], constants: &[("SIDE", Const::U32(8))] };
    const FILE: Variant =
        Variant { path: "a/p_2_t.wgsl", source: SOURCE, default_on: &[], ..NOTHING };
    static VARIANTS: [Variant; 3] =
        [Variant { path: "a/p_1_x.wgsl", ..NOTHING }, FILE.tiled(&SMALL), FILE.tiled(&LARGE)];
    let pass = Pass { op: "a", name: "p", variants: &VARIANTS };
    let call = facts(1, 1);
    let mut target = Target::baseline(Class::Discrete);
    for (pin, name) in [("1", "1 x"), ("2", "2 t 8x4"), ("2/8x4", "2 t 8x4"), ("2/8x8", "2 t 8x8")]
    {
        target.pinned.insert("a".into(), pin.parse().unwrap());
        assert_eq!(pass.choose(&target, &call).unwrap().name(), name);
    }
    target.pinned.clear();
    target.tuned = Arc::new(Tuned::from([(("a.p".into(), call.size), "2/8x8".parse().unwrap())]));
    let large = pass.choose(&target, &call).unwrap();
    assert_eq!(large.id().to_string(), "2/8x8");
    assert_eq!(large.text(), "const SIDE: u32 = 8u;\nf");
    let used: Vec<_> = pass.in_use(&target).iter().map(|v| v.id().to_string()).collect();
    assert_eq!(used, ["1", "2/8x8"]);
    assert_ne!(VARIANTS[1].identity(), large.identity());
    target.demoted.insert("a/p_2_t.wgsl");
    let chosen = pass.choose(&target, &call).unwrap();
    assert_eq!(chosen.number(), 1, "all tiles of a wrong file go");
}

#[test]
fn a_row_of_the_table_says_which_calls_it_takes() {
    const QUADS: Takes = Takes { quads: &[1], ..Takes::WORDS };
    const HALF: Takes = Takes { stored: &[(1, DType::F16)], ..Takes::WORDS };
    static VARIANTS: [Variant; 3] = [
        Variant { path: "a/p_1_x.wgsl", ..NOTHING },
        Variant { path: "a/p_2_y.wgsl", takes: QUADS, ..NOTHING },
        Variant { path: "a/p_3_z.wgsl", takes: HALF, ..NOTHING },
    ];
    let pass = Pass { op: "a", name: "p", variants: &VARIANTS };
    let call = |dtype: DType, row: usize| {
        let word = Operand { dtype: DType::F32, row: 7, rows: 1 };
        Facts { operands: vec![word, Operand { dtype, row, rows: 1 }, word], ..facts(1, 1) }
    };
    let mut target = Target::baseline(Class::Discrete);
    let number = |t: &Target, dtype, row| pass.choose(t, &call(dtype, row)).map(Variant::number);
    assert_eq!(number(&target, DType::F32, 8), Some(2));
    assert_eq!(number(&target, DType::U32, 6), Some(1));
    assert_eq!(number(&target, DType::F16, 6), Some(3));
    assert_eq!(number(&target, DType::BF16, 8), None);
    let used: Vec<_> = pass.in_use(&target).iter().map(|v| v.number()).collect();
    assert_eq!(used, [1, 2, 3]);
    // A pinned or tuned kernel that cannot take a call leaves it to the one that can.
    target.pinned.insert("a".into(), 2.into());
    assert_eq!(number(&target, DType::F32, 6), Some(1));
    target.pinned.clear();
    let tuned = [(("a.p".into(), facts(1, 1).size), 2.into())];
    target.tuned = Arc::new(Tuned::from(tuned));
    assert_eq!(number(&target, DType::F16, 8), Some(3));
}

#[test]
fn a_kernel_for_long_rows_leaves_others_to_the_rest() {
    const LONG: Takes = Takes { long: Some((0, 65)), ..Takes::WORDS };
    static VARIANTS: [Variant; 2] = [
        Variant { path: "a/p_1_x.wgsl", ..NOTHING },
        Variant { path: "a/p_2_y.wgsl", takes: LONG, ..NOTHING },
    ];
    let pass = Pass { op: "a", name: "p", variants: &VARIANTS };
    let target = Target::baseline(Class::Discrete);
    for (row, wanted) in [(64, 1), (65, 2)] {
        let operand = Operand { dtype: DType::F32, row, rows: 3 };
        assert_eq!(pass.default_for(&target, &[operand]).unwrap().number(), wanted);
    }
    let used: Vec<_> = pass.in_use(&target).iter().map(|v| v.number()).collect();
    assert_eq!(used, [1, 2]);
}
