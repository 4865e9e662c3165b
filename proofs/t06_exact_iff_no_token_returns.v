(* T1, the twin of 06-exact-iff-no-token-returns.md: the cache is the top k as long as no token returns.

   Modelled: setting P (SettingP.v): a cache that evicts the lowest accumulated score, any prompt
   length p >= 1, any budget, any integers as scores (the sign is not used here).

   Proved, with i_0 = max(p, k) - 1, for every horizon i >= i_0:
   - [exact_iff_no_return]: S_j = OPT_j at every step j from i_0 up to i exactly if
     OPT_j lies in OPT_{j-1} and the new token at every step from i_0 + 1 up to i. As this holds for
     every horizon, the first step at which either side fails is the same. *)

From Coq Require Import ZArith.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Common Sums SettingP.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(* If the k highest of U lie in the part G of U, they are the k highest of G. *)
Lemma trim_between low k (G U : seq nat) : strict_order low ->
  uniq G -> uniq U -> {subset G <= U} -> {subset trim low k U <= G} ->
  trim low k G =i trim low k U.
Proof.
move=> ord uG uU GU UG x; apply/idP/idP => [xG|xU]; last first.
  have := xU; rewrite !(mem_trim ord) // (UG _ xU) => /andP[_ h] /=.
  by apply: leq_ltn_trans h; apply: above_sub.
apply/negPn/negP => out; move: (xG); rewrite (mem_trim ord) // => /andP[xin].
rewrite ltnNge => /negP; apply.
have ks : k < size U.
  by rewrite ltnNge; apply: contra out => /(trim_small low)->; apply: GU.
have -> : k = size (trim low k U) by rewrite size_trim (minn_idPl _) // ltnW.
rewrite /above -size_filter; apply: uniq_leq_size; first exact: trim_uniq.
move=> y yU; rewrite mem_filter (UG _ yU) andbT.
exact: (trim_out_low ord uU (GU _ xin) out yU).
Qed.

Section Exact.

Variables (A : nat -> nat -> Z) (p k : nat).
Hypothesis prompt : 0 < p.

Notation cache := (cache A p k).
Notation top := (top A k).

Notation full_from := (full_from p k).

Lemma next i : full_from < i -> cache i.-1 =i top i.-1 ->
  (cache i =i top i) <-> (forall o, o \in top i -> (o == i) || (o \in top i.-1)).
Proof.
case: i => // i; rewrite [i.+1.-1]/= => fi same.
have ev : from_prompt_end p i.+1.
  rewrite /from_prompt_end; apply: leq_trans (leq_maxl p k) _; apply: leqW.
  by move: fi; rewrite /SettingP.full_from; case: (maxn p k).
have inG x : (x \in attended (below A) (from_prompt_end p) k i.+1) = (x == i.+1) || (x \in top i).
  by rewrite mem_rcons inE -same.
split=> [eq o|ret].
  by rewrite -eq => /(mem_subseq (store_subseq_attended _ _ _ _)); rewrite inG.
rewrite /cache /before storeS ev; apply: trim_between.
- exact: below_order.
- exact: attended_uniq.
- exact: iota_uniq.
- move=> x; rewrite mem_iota leq0n add0n ltnS mem_rcons inE => /orP[/eqP->|xin].
    exact: leqnn.
  apply: ltnW; exact: (@store_lt (below A) (from_prompt_end p) k i.+1).
- by move=> x /ret; rewrite inG.
Qed.

Theorem exact_iff_no_return i : full_from <= i ->
  (forall j, full_from <= j <= i -> cache j =i top j) <->
  (forall j, full_from < j <= i -> forall o, o \in top j -> (o == j) || (o \in top j.-1)).
Proof.
move=> fi; split=> [same j /andP[fj ji]|ret j].
  apply: (proj1 (next fj _)); apply: same; last by rewrite (ltnW fj).
  by case: j fj ji => // j fj ji; rewrite -ltnS fj ltnW.
elim: j => [|j IH] /andP[fj ji].
  have -> : 0 = full_from by apply/eqP; rewrite eq_sym -leqn0.
  exact: cache_start.
move: (fj); rewrite leq_eqVlt => /orP[/eqP<-|fj']; first exact: cache_start.
apply: (proj2 (next fj' _)); last by apply: ret; rewrite fj'.
by apply: IH; rewrite -ltnS fj' ltnW.
Qed.

End Exact.

Print Assumptions exact_iff_no_return.
