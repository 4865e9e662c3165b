(* T6, the twin of 11-offline-optimum-is-an-assignment.md: part 1, schedules and assignments.

   Modelled: schedules as in t13_dual_certificate.v, any sequence of caches without return and with at
   most k tokens from the prompt's end on; integers A(t,j) >= 0. [gone S j] is the first step that no
   longer finds token j, n if every one does: a token evicted at step e is gone from e + 1 on.
   [rest t j] is R(t,j), what decode steps from t on give to j, and [all_mass] is W.

   Proved:
   - [value_is_losses]: the value of a schedule is W less the sum of R(gone j, j);
   - [never_early]: for every schedule there is a full one, which holds min(k, t) tokens before each
     decode step t, everything before, and is worth at least as much;
   - [one_a_step]: in a full schedule exactly one token leaves at each step t >= max(k, p), p - k leave at
     the prompt's end if k < p, and none at other steps: the rows of the assignment problem;
   - [assignment_gives_schedule]: leaving steps e(j) > j that leave at most k tokens before each
     decode step come from a schedule, worth W less the sum of R(e(j), j).
   So the optimum is W less the least sum of R over assignments of the rows to tokens. Not proved here:
   that a solver may add the rows one at a time (2), and the paths (3). *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Sums t13_dual_certificate.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section Assignment.

Variables (n p k : nat) (A : nat -> nat -> Z).

Notation schedule := (schedule p k).
Notation value := (value n p A).

Definition rest (t j : nat) : Z := \Sum_(maxn t p <= u < n) A u j.
Definition all_mass : Z := \Sum_(p <= t < n) \Sum_(0 <= j < t.+1) A t j.
Definition gone (S : nat -> seq nat) (j : nat) : nat :=
  j.+1 + find (fun t => j \notin S t) (iota j.+1 (n - j.+1)).

(* How many tokens a full schedule holds before step t. *)
Definition room (t : nat) : nat := if p <= t then minn k t else t.
Definition full (S : nat -> seq nat) := forall t, size (S t) = room t.

Lemma size_older S t : schedule S -> size (S t) <= t.
Proof.
move=> ok; rewrite -[X in _ <= X](size_iota 0); apply: uniq_leq_size; first exact: (different ok).
by move=> j /(older ok); rewrite mem_iota.
Qed.

Lemma stays_out S j t u : schedule S -> j < t <= u -> j \notin S t -> j \notin S u.
Proof.
move=> ok /andP[jt tu] out; rewrite -(subnK tu); elim: (u - t) => // d IH.
rewrite addSn; apply/negP => /(no_return ok)/orP[/eqP e|]; last by rewrite (negbTE IH).
by move: jt; rewrite e ltnNge leq_addl.
Qed.

Lemma mem_gone S j t : schedule S -> j < t < n -> (j \in S t) = (t < gone S j).
Proof.
move=> ok /andP[jt tn]; set P := fun t => j \notin S t; set s := iota j.+1 (n - j.+1).
have jn : j.+1 <= n by apply: leq_trans tn; apply: leqW.
have nths i : i < n - j.+1 -> nth 0 s i = j.+1 + i by move=> i_; rewrite nth_iota.
have idx : t - j.+1 < n - j.+1 by rewrite ltn_sub2r // (leq_ltn_trans jt).
rewrite /gone -/P -/s; have [lt|ge] := ltnP t (j.+1 + find P s).
  have := @before_find _ 0 P s (t - j.+1); rewrite nths // subnKC //.
  by rewrite ltn_subLR // lt => /(_ isT)/negbFE.
have fs : find P s < size s.
  by rewrite size_iota (leq_ltn_trans _ idx) // leq_subRL // ltnW.
have out : j \notin S (j.+1 + find P s).
  have := nth_find 0 (_ : has P s); rewrite has_find => /(_ fs).
  by rewrite nths // -[X in _ < X](size_iota j.+1).
by apply/negbTE; apply: (stays_out ok _ out); rewrite ge andbT leq_addr.
Qed.

Lemma gone_range S j : j < n -> j < gone S j <= n.
Proof.
move=> jn; rewrite /gone leq_addr /=.
have := find_size (fun t => j \notin S t) (iota j.+1 (n - j.+1)); rewrite size_iota => h.
by rewrite -[X in _ <= X](subnKC jn) leq_add2l.
Qed.

(* The tokens of a step, as the earlier tokens that are not gone. *)
Lemma step_tokens S t : schedule S -> t < n ->
  perm_eq (S t) [seq j <- iota 0 t | t < gone S j].
Proof.
move=> ok tn; apply: uniq_perm; [exact: (different ok)|by rewrite filter_uniq // iota_uniq|].
move=> j; rewrite mem_filter mem_iota /= add0n andbC; case jt: (j < t) => /=.
  by apply: mem_gone => //; rewrite jt.
by apply/negbTE/negP => /(older ok); rewrite jt.
Qed.

(* What leaving steps e cost. *)
Lemma sum_of_losses (e : nat -> nat) : (forall j, j < n -> j < e j) ->
  (\Sum_(p <= t < n) (\Sum_(j <- [seq j <- iota 0 t | (t < e j)%N]) A t j + A t t)
   = all_mass - \Sum_(0 <= j < n) rest (e j) j)%Z.
Proof.
move=> late.
have split t : p <= t < n ->
    \Sum_(0 <= j < t.+1) A t j =
    (\Sum_(j <- [seq j <- iota 0 t | (t < e j)%N]) A t j + A t t
     + \Sum_(0 <= j < n | (e j <= t)%N) A t j)%Z.
  move=> /andP[_ tn]; rewrite big_nat_recr //= (bigID (fun j => t < e j)) /= big_filter.
  have -> : \Sum_(0 <= j < n | (e j <= t)%N) A t j = \Sum_(0 <= j < t | ~~ (t < e j)%N) A t j.
    rewrite (@big_cat_nat _ _ _ t) ?(ltnW tn) //=.
    have -> : \Sum_(t <= j < n | (e j <= t)%N) A t j = 0%Z.
      rewrite big_nat_cond big_pred0 // => j; apply/negP => /andP[/andP[tj jn] ej].
      by have := leq_trans (late j jn) (leq_trans ej tj); rewrite ltnn.
    by rewrite Z.add_0_r; apply: eq_bigl => j; rewrite leqNgt.
  by rewrite /index_iota subn0; sums.
have -> : all_mass = \Sum_(p <= t < n)
    ((\Sum_(j <- [seq j <- iota 0 t | (t < e j)%N]) A t j + A t t)
     + \Sum_(0 <= j < n | (e j <= t)%N) A t j).
  by apply: eq_big_nat => t; apply: split.
rewrite [in RHS]sum_add; set x := \Sum_(p <= t < n) (_ + A t t).
suff -> : \Sum_(p <= t < n) \Sum_(0 <= j < n | (e j <= t)%N) A t j = \Sum_(0 <= j < n) rest (e j) j.
  by sums.
rewrite (exchange_big_dep xpredT) //=; apply: eq_bigr => j _.
rewrite /rest; have [mn|nm] := leqP (maxn (e j) p) n.
  rewrite (@big_cat_nat _ _ _ (maxn (e j) p)) ?leq_maxr //=.
  have -> : \Sum_(p <= t < maxn (e j) p | (e j <= t)%N) A t j = 0%Z.
    rewrite big_nat_cond big_pred0 // => t; apply/negP => /andP[/andP[pt tm] et].
    by move: tm; rewrite ltnNge geq_max et pt.
  rewrite Z.add_0_l big_nat_cond [RHS]big_nat_cond; apply: eq_bigl => t.
  by case h: (_ <= _ < _) => //=; move: h; rewrite geq_max => /andP[/andP[-> _] _].
rewrite [RHS]big_geq ?(ltnW nm) // big_nat_cond big_pred0 // => t.
apply/negP => /andP[/andP[pt tn] et]; move: nm; rewrite ltnNge geq_max.
by rewrite (leq_trans et (ltnW tn)) (leq_trans pt (ltnW tn)).
Qed.

Theorem value_is_losses S : schedule S ->
  (value S = all_mass - \Sum_(0 <= j < n) rest (gone S j) j)%Z.
Proof.
move=> ok; rewrite -(@sum_of_losses (gone S)); last by move=> j /(@gone_range S)/andP[].
apply: eq_big_nat => t /andP[_ tn]; congr (_ + _)%Z.
by apply: perm_big; apply: step_tokens.
Qed.

Lemma room_step t : room t.+1 <= (room t).+1.
Proof.
rewrite /room; case: (leqP p t.+1) => [_|pt]; last by rewrite [p <= t]leqNgt (ltnW pt).
case: ifP => _; last exact: geq_minr.
by rewrite -minnSS leq_min geq_minr andbT (leq_trans (geq_minl _ _)).
Qed.

(* Take what the schedule holds, and fill up with what the full one held. *)
Fixpoint filled (S : nat -> seq nat) (t : nat) : seq nat :=
  if t is t'.+1 then
    take (room t) (S t ++ [seq x <- rcons (filled S t') t' | x \notin S t])
  else [::].

Theorem never_early S : (forall t j, (0 <= A t j)%Z) -> schedule S ->
  exists S', [/\ schedule S', full S' & (value S <= value S')%Z].
Proof.
move=> pos ok; exists (filled S).
have small t : size (S t) <= room t.
  rewrite /room; case: ifP => pt; last exact: size_older.
  by rewrite leq_min (within ok) //= size_older.
have facts t : [/\ uniq (filled S t), {subset filled S t <= iota 0 t},
    {subset S t <= filled S t} & size (filled S t) = room t].
  elim: t => [|t [un le sub sz]].
    have S0 : S 0 = [::] by apply: size0nil; apply/eqP; rewrite -leqn0 size_older.
    by split=> //; [rewrite S0|rewrite /room minn0 if_same].
  have tnew : t \notin filled S t by apply/negP => /le; rewrite mem_iota ltnn andbF.
  have uG : uniq (rcons (filled S t) t) by rewrite rcons_uniq tnew.
  have SG : {subset S t.+1 <= rcons (filled S t) t}.
    by move=> j /(no_return ok)/orP[/eqP->|/sub]; rewrite mem_rcons inE ?eqxx // => ->; rewrite orbT.
  have uc : uniq (S t.+1 ++ [seq x <- rcons (filled S t) t | x \notin S t.+1]).
    rewrite cat_uniq (different ok) filter_uniq // andbT; apply/hasPn => x.
    by rewrite mem_filter => /andP[].
  have pc : perm_eq (S t.+1 ++ [seq x <- rcons (filled S t) t | x \notin S t.+1]) (rcons (filled S t) t).
    apply: uniq_perm => // x; rewrite mem_cat mem_filter.
    by case xS: (x \in S t.+1) => //=; rewrite (SG _ xS).
  split; first exact: take_uniq.
  - move=> x /mem_take; rewrite (perm_mem pc) mem_rcons inE mem_iota ltnS leq0n.
    move=> /orP[/eqP->|/le]; first exact: leqnn.
    by rewrite mem_iota add0n => /ltnW.
  - move=> x xS; rewrite /= take_cat; case: ltnP => h; last by rewrite mem_cat xS.
    by move: h; rewrite ltnNge small.
  rewrite /= size_take (perm_size pc) size_rcons sz.
  by case: ltnP => // h; apply/eqP; rewrite eqn_leq h room_step.
split.
- split=> [t|t j|t j|t pt].
  + by case: (facts t).
  + by case: (facts t) => _ le _ _ /le; rewrite mem_iota.
  + move=> /mem_take; rewrite mem_cat mem_filter => /orP[/(no_return ok)/orP[->//|jS]|/andP[_]].
      by case: (facts t) => _ _ sub _; rewrite (sub _ jS) orbT.
    by rewrite mem_rcons inE.
  by case: (facts t) => _ _ _ ->; rewrite /room pt geq_minl.
- by move=> t; case: (facts t).
apply: sum_le => t _ _; apply: (proj1 (Z.add_le_mono_r _ _ _)); have [un _ sub _] := facts t.
rewrite (sum_sub_seq _ (different ok t) un sub).
have : (0 <= \Sum_(j <- filled S t | j \notin S t) A t j)%Z by apply: sum_ge0.
by sums.
Qed.

(* How many tokens leave at step t: those that step t attends and step t + 1 does not find. *)
Theorem one_a_step S t : schedule S -> full S -> t.+1 < n ->
  count (fun j => gone S j == t.+1) (iota 0 n) =
  if p <= t then (k <= t : nat) else if t.+1 == p then p - k else 0.
Proof.
move=> ok fu tn.
have leave : perm_eq [seq j <- iota 0 n | gone S j == t.+1] [seq j <- rcons (S t) t | j \notin S t.+1].
  have uG : uniq (rcons (S t) t).
    by rewrite rcons_uniq (different ok) andbT; apply/negP => /(older ok); rewrite ltnn.
  apply: uniq_perm; rewrite ?filter_uniq // ?iota_uniq // => j.
  rewrite !mem_filter mem_iota add0n leq0n mem_rcons inE /=.
  have [jt|tj] := leqP j t; last first.
    (* not there yet *)
    have -> : (gone S j == t.+1) && (j < n) = false.
      apply/negP => /andP[/eqP g /(@gone_range S)/andP[+ _]].
      by rewrite g ltnNge -ltnS ltnS tj.
    by rewrite (gtn_eqF tj); apply/esym/negbTE/negP => /andP[_ /(older ok)]; rewrite ltnNge (ltnW tj).
  rewrite (leq_ltn_trans jt (ltnW tn)) andbT (mem_gone ok) ?ltnS ?jt // -leqNgt.
  have [->|jt'] /= := eqVneq j t.
    have /andP[+ _] := @gone_range S t (ltnW tn); by rewrite andbT eqn_leq => ->; rewrite andbT.
  rewrite (mem_gone ok) ?(ltn_neqAle j) ?jt' ?jt ?(ltnW tn) //.
  by rewrite eqn_leq.
rewrite -size_filter (perm_size leave) size_filter.
have total : count (fun j => j \in S t.+1) (rcons (S t) t) = size (S t.+1).
  rewrite -size_filter; apply/perm_size/uniq_perm; rewrite ?filter_uniq ?(different ok) //.
    by rewrite rcons_uniq (different ok) andbT; apply/negP => /(older ok); rewrite ltnn.
  by move=> j; rewrite mem_filter mem_rcons inE; case jS: (j \in S t.+1) => //=; rewrite (no_return ok jS).
have := count_predC (fun j => j \in S t.+1) (rcons (S t) t); rewrite total size_rcons !fu => e.
have -> : count (fun j => j \notin S t.+1) (rcons (S t) t) = (room t).+1 - room t.+1.
  by rewrite -e addKn.
rewrite /room; case: (leqP p t) => pt.
  rewrite (leqW pt); case: (leqP k t) => kt.
    by rewrite (minn_idPl _) ?(leqW kt) // subSnn.
  by rewrite (minn_idPr _) // subnn.
case: (leqP p t.+1) => pt'; last by rewrite (ltn_eqF pt') subnn.
have -> : t.+1 = p by apply/eqP; rewrite eqn_leq pt pt'.
rewrite eqxx; case: (leqP k p) => kp; first by [].
by rewrite subnn; apply/esym/eqP; rewrite subn_eq0 ltnW.
Qed.

(* Leaving steps that leave at most k tokens before each decode step are those of a schedule. *)
Theorem assignment_gives_schedule (e : nat -> nat) :
  (forall j, j < n -> j < e j) ->
  (forall t, p <= t -> count (fun j => t < e j) (iota 0 t) <= k) ->
  let S := fun t => [seq j <- iota 0 t | t < e j] in
  schedule S /\ (value S = all_mass - \Sum_(0 <= j < n) rest (e j) j)%Z.
Proof.
move=> late few S; split; last by rewrite -sum_of_losses.
split=> [t|t j|t j|t pt].
- by rewrite filter_uniq // iota_uniq.
- by rewrite mem_filter mem_iota => /andP[].
- rewrite !mem_filter !mem_iota !add0n !leq0n !andTb => /andP[te].
  by rewrite ltnS leq_eqVlt => /orP[->//|jt]; rewrite (ltnW te) jt orbT.
by rewrite size_filter few.
Qed.

End Assignment.

Print Assumptions value_is_losses.
Print Assumptions never_early.
Print Assumptions one_a_step.
Print Assumptions assignment_gives_schedule.
