(* M2, the twin of 18-random-rank-is-minimax.md: parts 1 and 2, by an average over all orders.

   Modelled: a random rank is one of the n! orders of the tokens 0 ... n-1, all equally likely; an
   order is a list, and of two tokens the one listed first ranks higher. For each order the cache of
   Common.v runs, evicting the lowest until k are left, from the prompt's end on. An expectation is a
   sum over all orders, so everything is counted n! times and nothing is divided.

   Proved, for every decode step t:
   - [kept_equally]: each of the t older tokens is cached under min(k, t) / t of the orders;
   - [expected_mass]: part 1, what step t attends from the cache, summed over the orders;
   - [expected_at_least]: part 2, the expected value of a run is at least k / (n - 1) of all decode mass,
     which is at least OPT(h) for every h.
   Not proved here: part 3, that no policy does better. *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Common Sums SettingP t14_inclusion.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section RandomRank.

Variables (n p k : nat).

Definition orders : seq (seq nat) := permutations (iota 0 n).
Definition ranked (order : seq nat) : rel nat := by_score (fun u => (- Z.of_nat (index u order))%Z).
Definition cache (order : seq nat) (t : nat) : seq nat :=
  store (fun=> ranked order) (from_prompt_end p) k t.

Lemma cache_is_top order t : p <= t -> 0 < t ->
  perm_eq (cache order t) (trim (ranked order) k (iota 0 t)).
Proof.
have ord := by_score_order (fun u => (- Z.of_nat (index u order))%Z).
have snoc m : rcons (iota 0 m) m = iota 0 m.+1 by rewrite -addn1 iotaD cats1.
case: t => // t pt _; elim: t pt => [|t IH] pt.
  by rewrite /cache storeS /from_prompt_end pt.
have [pt'|tp] := leqP p t.+1.
  rewrite /cache storeS /from_prompt_end (leqW pt') /attended -/(cache order t.+1) -snoc -!cats1.
  have u1 : uniq (cache order t.+1 ++ [:: t.+1]) by rewrite cats1; apply: attended_uniq.
  have e : perm_eq (cache order t.+1 ++ [:: t.+1]) (trim (ranked order) k (iota 0 t.+1) ++ [:: t.+1]).
    by rewrite perm_cat2r; apply: IH.
  apply: perm_trans (trim_perm ord k u1 e) _.
  by apply: trim_cat => //; rewrite cats1 snoc iota_uniq.
rewrite /cache storeS /from_prompt_end pt /attended store_all ?snoc // => s st.
by rewrite /from_prompt_end leqNgt (leq_ltn_trans st).
Qed.

(* The exchange of two tokens. *)
Definition swap (i j x : nat) : nat := if x == i then j else if x == j then i else x.

Lemma swapK i j : involutive (swap i j).
Proof.
move=> x; rewrite /swap; have [->|xi] := eqVneq x i.
  by rewrite eqxx; case: eqVneq.
have [->|xj] := eqVneq x j; first by rewrite eqxx.
by rewrite (negbTE xi) (negbTE xj).
Qed.

Lemma swap_inj i j : injective (swap i j).
Proof. exact: inv_inj (swapK i j). Qed.

Lemma swap_iota i j t : i < t -> j < t -> perm_eq (map (swap i j) (iota 0 t)) (iota 0 t).
Proof.
move=> it jt; apply: uniq_perm; [by rewrite (map_inj_uniq (@swap_inj i j)) iota_uniq|exact: iota_uniq|].
have inside x : x < t -> swap i j x < t by rewrite /swap; case: ifP => // _; case: ifP.
move=> x; rewrite mem_iota add0n leq0n /=; apply/mapP/idP => [[y]|xt].
  by rewrite mem_iota => /andP[_ yt] ->; apply: inside.
by exists (swap i j x); rewrite ?swapK // mem_iota add0n leq0n /= inside.
Qed.

Lemma swap_orders i j : i < n -> j < n -> perm_eq (map (map (swap i j)) orders) orders.
Proof.
move=> i_ j_; have inj := inj_map (@swap_inj i j).
apply: uniq_perm; [by rewrite (map_inj_uniq inj) permutations_uniq|exact: permutations_uniq|].
have stays s : s \in orders -> map (swap i j) s \in orders.
  rewrite !mem_permutations => h; apply: perm_trans (perm_map _ h) _; exact: swap_iota.
move=> s; apply/mapP/idP => [[r rin ->]|sin]; first exact: stays.
exists (map (swap i j) s); first exact: stays.
by rewrite -map_comp -[LHS]map_id; apply: eq_map => x; rewrite /= swapK.
Qed.

Lemma above_swap order i j t : order \in orders -> i < t -> j < t -> t <= n ->
  above (ranked (map (swap i j) order)) j (iota 0 t) = above (ranked order) i (iota 0 t).
Proof.
rewrite mem_permutations => oin it jt tn.
rewrite /above -(permP (swap_iota it jt)) count_map; apply: eq_in_count => x.
rewrite mem_iota add0n => /andP[_ xt] /=.
have e : j = swap i j i by rewrite /swap eqxx.
have mem y : y < t -> y \in order by move=> yt; rewrite (perm_mem oin) mem_iota (leq_trans yt).
have [->|xi] := eqVneq x i; first by rewrite -e /ranked !(low_irr (by_score_order _)).
have -> : ranked (map (swap i j) order) j (swap i j x) =
          ranked (map (swap i j) order) (swap i j i) (swap i j x) by rewrite -e.
rewrite /ranked /by_score !(index_map (@swap_inj i j)).
suff ne : (- Z.of_nat (index i order) =? - Z.of_nat (index x order))%Z = false by rewrite ne.
apply/Z.eqb_neq => /Z.opp_inj/Nat2Z.inj eqi; move/eqP: xi; apply.
by rewrite -(nth_index 0 (mem x xt)) -eqi nth_index // mem.
Qed.

Definition times_kept (t j : nat) : nat := count (fun order => j \in cache order t) orders.

Lemma kept_alike t i j : p <= t <= n -> i < t -> j < t -> times_kept t i = times_kept t j.
Proof.
move=> /andP[pt tn] it jt; have t0 : 0 < t by apply: leq_ltn_trans it.
have inside order x : x < t -> (x \in cache order t) = (above (ranked order) x (iota 0 t) < k).
  move=> xt; rewrite (perm_mem (cache_is_top order pt t0)) mem_trim ?iota_uniq ?mem_iota ?add0n ?xt //.
  exact: by_score_order.
rewrite /times_kept -[RHS](permP (swap_orders (leq_trans it tn) (leq_trans jt tn))) count_map.
apply: eq_in_count => order oin /=; rewrite !inside //.
by rewrite above_swap.
Qed.

Theorem kept_equally t j : p <= t <= n -> j < t ->
  t * times_kept t j = minn k t * size orders.
Proof.
move=> ptn jt; have t0 : 0 < t by apply: leq_ltn_trans jt.
have -> : t * times_kept t j = \sum_(i <- iota 0 t) times_kept t i.
  rewrite big_seq (eq_bigr (fun=> times_kept t j)) => [|i]; last first.
    by rewrite mem_iota => /andP[_ it]; apply: kept_alike.
  by rewrite -big_seq big_const_seq count_predT size_iota iter_addn_0 mulnC.
have -> : \sum_(i <- iota 0 t) times_kept t i = \sum_(order <- orders) size (cache order t).
  rewrite /times_kept; under eq_bigr do rewrite -sum1_count big_mkcond.
  rewrite exchange_big /=; apply: eq_bigr => order _.
  rewrite -big_mkcond sum1_count -size_filter; apply/perm_size/uniq_perm; rewrite ?filter_uniq ?iota_uniq ?store_uniq //.
  by move=> x; rewrite mem_filter mem_iota add0n leq0n /=; case xin: (x \in _) => //=; rewrite (store_lt xin).
have /andP[pt _] := ptn.
rewrite (eq_bigr (fun=> minn k t)) => [|order _].
  by rewrite big_const_seq count_predT iter_addn_0.
by rewrite (perm_size (cache_is_top order pt t0)) size_trim size_iota.
Qed.

Lemma how_many : size orders = n`!.
Proof. by rewrite size_permutations ?iota_uniq // size_iota. Qed.

Variable A : nat -> nat -> nat.

Theorem expected_mass t : 0 < t -> p <= t <= n ->
  t * (\sum_(order <- orders) \sum_(j <- cache order t) A t j) =
  minn k t * n`! * \sum_(0 <= j < t) A t j.
Proof.
move=> t0 ptn.
have -> : \sum_(order <- orders) \sum_(j <- cache order t) A t j =
          \sum_(0 <= j < t) times_kept t j * A t j.
  rewrite (eq_bigr (fun order => \sum_(0 <= j < t | j \in cache order t) A t j)) => [|order _].
    rewrite (exchange_big_dep xpredT) //=; apply: eq_bigr => j _.
    by rewrite big_const_seq iter_addn_0 mulnC.
  rewrite -[RHS]big_filter; apply: perm_big; apply: uniq_perm; rewrite ?store_uniq ?filter_uniq ?iota_uniq //.
  move=> x; rewrite mem_filter mem_index_iota /=.
  by case xin: (x \in _) => //=; rewrite (store_lt xin).
rewrite big_distrr [RHS]big_distrr /=; apply: eq_big_nat => j /andP[_ jt].
by rewrite mulnA kept_equally // how_many.
Qed.

Theorem expected_at_least : 0 < p -> k < n ->
  k * n`! * (\sum_(p <= t < n) \sum_(0 <= j < t.+1) A t j) <=
  n.-1 * \sum_(order <- orders) \sum_(p <= t < n) (\sum_(j <- cache order t) A t j + A t t).
Proof.
move=> p0 kn; have kn' : k <= n.-1 by case: n kn.
rewrite exchange_big /= !big_distrr /= big_nat [X in _ <= X]big_nat.
apply: leq_sum => t /andP[pt tn]; have t0 : 0 < t by apply: leq_trans pt.
have tn' : t <= n.-1 by case: n tn.
rewrite big_nat_recr //= big_split /= mulnDr [X in _ <= X]mulnDr; apply: leq_add; last first.
  by rewrite big_const_seq count_predT iter_addn_0 how_many [A t t * _]mulnC mulnA leq_mul2r leq_mul2r kn' !orbT.
have ptn : p <= t <= n by rewrite pt ltnW.
have := expected_mass t0 ptn; set X := \sum_(order <- orders) _; set M := \sum_(0 <= j < t) _ => e.
have [kt|tk] := leqP k t.
  by apply: leq_trans (_ : t * X <= _); rewrite ?leq_mul2r ?tn' ?orbT // e (minn_idPl kt).
have {}e : X = n`! * M by apply/eqP; rewrite -(eqn_pmul2l t0) e (minn_idPr (ltnW tk)) mulnA.
by rewrite e mulnA leq_mul2r leq_mul2r kn' !orbT.
Qed.

End RandomRank.

Print Assumptions kept_equally.
Print Assumptions expected_mass.
Print Assumptions expected_at_least.
