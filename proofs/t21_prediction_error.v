(* M5, the twin of 21-prediction-error.md: what a schedule made for a predicted matrix is worth.

   Modelled: schedules as in t13_dual_certificate.v, two matrices of integers of any sign, the true one
   and the predicted one. "Optimal for the prediction" enters only through this: under the prediction the
   schedule that was made is worth at least as much as the other.

   Proved:
   - [prediction_error_between]: under the true matrix it is worth at least what the other is, less
     the sum of |A - B| over the pairs that exactly one of the two attends;
   - [prediction_error]: hence less the sum over all pairs of a decode step and an older token; with the
     other schedule optimal for the true matrix this is the statement. *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Sums t13_dual_certificate.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section Prediction.

Variables (n p k : nat) (A B : nat -> nat -> Z) (made best : nat -> seq nat).

Hypothesis made_ok : schedule p k made.
Hypothesis best_ok : schedule p k best.
Hypothesis made_for_B : (value n p B best <= value n p B made)%Z.

Lemma as_range (S : nat -> seq nat) (d : nat -> Z) t : schedule p k S ->
  \Sum_(j <- S t) d j = \Sum_(0 <= j < t | j \in S t) d j.
Proof.
move=> ok; rewrite -[RHS]big_filter; apply: perm_big; apply: uniq_perm.
- exact: (different ok).
- by rewrite filter_uniq // iota_uniq.
move=> j; rewrite mem_filter mem_index_iota /=.
by case jS: (j \in S t) => //=; rewrite (older ok jS).
Qed.

Theorem prediction_error_between :
  (value n p A best - \Sum_(p <= t < n)
     \Sum_(0 <= j < t | (j \in best t) (+) (j \in made t)) Z.abs (A t j - B t j)
   <= value n p A made)%Z.
Proof.
have apart (S : nat -> seq nat) :
    (value n p A S - value n p B S = \Sum_(p <= t < n) (\Sum_(j <- S t) (A t j - B t j) + (A t t - B t t)))%Z.
  by rewrite /value -sum_sub; apply: eq_bigr => t _; rewrite sum_sub; sums.
have step : (\Sum_(p <= t < n) (\Sum_(j <- best t) (A t j - B t j) + (A t t - B t t)) <=
    \Sum_(p <= t < n) (\Sum_(j <- made t) (A t j - B t j) + (A t t - B t t)) +
    \Sum_(p <= t < n) \Sum_(0 <= j < t | (j \in best t) (+) (j \in made t)) Z.abs (A t j - B t j))%Z.
  rewrite -sum_add; apply: sum_le => t _ _; rewrite !(as_range (fun j => A t j - B t j)%Z t) //.
  suff : (\Sum_(0 <= j < t | j \in best t) (A t j - B t j) <=
     \Sum_(0 <= j < t | j \in made t) (A t j - B t j) +
     \Sum_(0 <= j < t | (j \in best t) (+) (j \in made t)) Z.abs (A t j - B t j))%Z by sums.
  rewrite big_mkcond [X in (_ <= X + _)%Z]big_mkcond [X in (_ <= _ + X)%Z]big_mkcond -sum_add.
  by apply: sum_le => j _ _; case: (j \in best t); case: (j \in made t) => /=; lia.
move: made_for_B (apart best) (apart made) step.
by move: (value n p A best) (value n p B best) (value n p A made) (value n p B made); sums.
Qed.

Theorem prediction_error :
  (value n p A best - \Sum_(p <= t < n) \Sum_(0 <= j < t) Z.abs (A t j - B t j)
   <= value n p A made)%Z.
Proof.
apply: Z.le_trans prediction_error_between.
have : (\Sum_(p <= t < n) \Sum_(0 <= j < t | (j \in best t) (+) (j \in made t)) Z.abs (A t j - B t j)
        <= \Sum_(p <= t < n) \Sum_(0 <= j < t) Z.abs (A t j - B t j))%Z.
  apply: sum_le => t _ _; rewrite big_mkcond; apply: sum_le => j _ _.
  by case: ifP => _; lia.
by move: (value n p A best); sums.
Qed.

End Prediction.

Print Assumptions prediction_error_between.
Print Assumptions prediction_error.
