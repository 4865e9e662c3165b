(* T2, the twin of 07-post-eviction-mass.md: what is lost is what missed tokens received after their
   eviction.

   Modelled: setting P (SettingP.v) on any matrix of integers that are not negative, with a prompt of
   any length and any budget; of equals the oldest goes first. [gone k i o] is the step at which the
   run evicted token o.

   Proved, for every step i and any list O of at most k different tokens 0 ... i, the k highest among
   others:
   - [post_eviction_mass]: f_i(O) is at most f_i(S_i) and what the members of O that S_i misses
     received after they had been evicted;
   - [share_after_eviction]: if each of these received at most num/den of its score after its
     eviction, f_i(S_i) is at least (1 - num/den) f_i(O). *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Common Sums SettingP.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section PostEviction.

Variables (A : nat -> nat -> Z) (p k : nat).
Hypothesis pos : forall t s, (0 <= A t s)%Z.

Notation score := (score A).
Notation mass := (mass A).
Notation cache := (cache A p k).
Notation gone := (gone A p k).

Theorem post_eviction_mass i (O : seq nat) :
  uniq O -> (forall o, o \in O -> o <= i) -> size O <= k ->
  (mass i O <= mass i (cache i)
     + \Sum_(o <- O | o \notin cache i) (score i o - score (gone i o) o))%Z.
Proof.
move=> uO oi Ok.
have [full|notfull] := boolP (all (mem (cache i)) O).
  (* nothing is missed *)
  rewrite [X in (_ <= _ + X)%Z]big1_seq ?Z.add_0_r.
    rewrite /mass (sum_sub_seq _ uO (cache_uniq A p k i) (allP full)).
    have : (0 <= \Sum_(s <- cache i | s \notin O) score i s)%Z by apply: sum_ge0 => *; apply: score_ge0.
    by sums.
  by move=> o /andP[out /(allP full)]; rewrite /= (negbTE out).
apply: exchange_bound => //; [exact: cache_uniq| |exact: score_ge0|]; last first.
  by move=> o s oO out sS; apply: gone_below => //; apply: oi.
rewrite size_before; case: ifP => pi.
  have [//|ki] := leqP k i.+1.
  (* before k tokens have come, none has gone *)
  case/allPn: notfull => o oO; rewrite /= /cache /before store_all ?mem_iota ?ltnS ?oi //.
  by move=> s si _; apply: leq_trans ki; rewrite ltnW.
case/allPn: notfull => o oO; rewrite /= /cache /before store_all ?mem_iota ?ltnS ?oi //.
by move=> s si; rewrite /from_prompt_end leqNgt (leq_ltn_trans si) // ltnNge pi.
Qed.

Corollary share_after_eviction i (O : seq nat) (num den : Z) :
  uniq O -> (forall o, o \in O -> o <= i) -> size O <= k ->
  (0 <= num <= den)%Z ->
  (forall o, o \in O -> o \notin cache i ->
     (den * (score i o - score (gone i o) o) <= num * score i o)%Z) ->
  ((den - num) * mass i O <= den * mass i (cache i))%Z.
Proof.
move=> uO oi Ok nd share.
have main := post_eviction_mass uO oi Ok.
have paid : (den * (\Sum_(o <- O | o \notin cache i) (score i o - score (gone i o) o))
             <= num * mass i O)%Z.
  rewrite -sum_mul /mass -sum_mul [X in (_ <= X)%Z](bigID (fun o => o \notin cache i)) /=.
  have h : (0 <= \Sum_(o <- O | ~~ (o \notin cache i)) num * score i o)%Z.
    by apply: sum_ge0 => o _ _; apply: Z.mul_nonneg_nonneg; [lia|apply: score_ge0].
  have := sum_le (f := fun o => (den * (score i o - score (gone i o) o))%Z)
    (g := fun o => (num * score i o)%Z) share.
  by move: h; sums.
by move: main paid; sums || nia.
Qed.

End PostEviction.

Print Assumptions post_eviction_mass.
Print Assumptions share_after_eviction.
