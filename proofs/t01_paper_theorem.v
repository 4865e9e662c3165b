(* The twin of 01-paper-theorem.md: what the induction of the paper's theorem proves.

   Modelled: numbers only. With i_0 the step at which the cache is full, [value m] is f_i(S_i) at
   i = i_0 + m, [stay m] is f_i(S_{i-1}), what the old cache is worth under the new function, and
   [opt m] is opt_i. All are rational. The three conditions are those of the Markdown file: swap, value
   drift and growth; the last bounds the growth of opt, the direction that the induction needs.

   Proved:
   - [induction]: f_i(S_i) >= c prod (1 - theta_j)(1 - gamma_j) opt_i - m eps;
   - [printed_bound]: with all theta_j, gamma_j at most alpha / (10 n), eps = beta / (10 n) and at most n
     steps, f_i(S_i) >= (1 - alpha) c opt_i - beta, for every c >= 0, so for any lower bound
     of 1 - 1/e as well. *)

From Coq Require Import QArith Lqa Lia.
Open Scope Q_scope.

Section Induction.

Variables (value stay opt theta gamma : nat -> Q) (c eps : Q).

Fixpoint factors (m : nat) : Q :=
  match m with
  | O => 1
  | S m' => factors m' * ((1 - theta m) * (1 - gamma m))
  end.

Hypothesis c_pos : 0 <= c.
Hypothesis eps_pos : 0 <= eps.
Hypothesis start : c * opt 0%nat <= value 0%nat.
Hypothesis theta_range : forall j, 0 <= theta j < 1.
Hypothesis gamma_range : forall j, 0 <= gamma j < 1.
Hypothesis swap : forall m, stay (S m) - eps <= value (S m).
Hypothesis value_drift : forall m, (1 - theta (S m)) * value m <= stay (S m).
Hypothesis growth : forall m, (1 - gamma (S m)) * opt (S m) <= opt m.

Definition count (m : nat) : Q := inject_Z (Z.of_nat m).

Lemma count_next m : count (S m) == count m + 1.
Proof. unfold count; rewrite Nat2Z.inj_succ, <- Z.add_1_r, inject_Z_plus; reflexivity. Qed.

Lemma count_pos m : 0 <= count m.
Proof. unfold count; replace 0 with (inject_Z 0) by reflexivity; rewrite <- Zle_Qle; lia. Qed.

Lemma factors_pos m : 0 <= factors m.
Proof.
induction m as [|m IH]; cbn [factors]; [lra|].
destruct (theta_range (S m)), (gamma_range (S m)).
apply Qmult_le_0_compat; [exact IH|]; apply Qmult_le_0_compat; lra.
Qed.

Theorem induction m : c * factors m * opt m - count m * eps <= value m.
Proof.
induction m as [|m IH].
  unfold count; cbn [factors Z.of_nat]; change (inject_Z 0) with 0; lra.
rewrite count_next; cbn [factors].
destruct (theta_range (S m)) as [t0 t1].
pose proof (swap m) as sw. pose proof (value_drift m) as vd.
pose proof (factors_pos m) as fp.
set (u := 1 - theta (S m)) in *.
assert (up : 0 <= u) by (unfold u; lra).
assert (u1 : u <= 1) by (unfold u; lra).
(* the hypothesis, times 1 - theta *)
assert (a : u * (c * factors m * opt m - count m * eps) <= u * value m).
  rewrite !(Qmult_comm u); apply Qmult_le_compat_r; assumption.
(* growth, times everything in front of it *)
assert (b : u * (c * factors m) * ((1 - gamma (S m)) * opt (S m)) <= u * (c * factors m) * opt m).
  rewrite !(Qmult_comm (u * (c * factors m))); apply Qmult_le_compat_r; [apply growth|].
  apply Qmult_le_0_compat; [exact up|]; apply Qmult_le_0_compat; assumption.
assert (d : u * (count m * eps) <= 1 * (count m * eps)).
  apply Qmult_le_compat_r; [exact u1|]; apply Qmult_le_0_compat; [apply count_pos|exact eps_pos].
set (g := 1 - gamma (S m)) in *.
assert (e : c * (factors m * (u * g)) * opt (S m) == u * (c * factors m) * (g * opt (S m))) by ring.
assert (f : u * (c * factors m * opt m - count m * eps)
            == u * (c * factors m) * opt m - u * (count m * eps)) by ring.
assert (h : (count m + 1) * eps == count m * eps + eps) by ring.
rewrite e, h; rewrite f in a; lra.
Qed.

(* Bernoulli's inequality, for this product. *)
Lemma factors_bernoulli x m : 0 <= x <= 1 -> (forall j, theta j <= x) -> (forall j, gamma j <= x) ->
  1 - 2 * count m * x <= factors m.
Proof.
intros [x0 x1] tx gx; induction m as [|m IH].
  unfold count; cbn [factors Z.of_nat]; change (inject_Z 0) with 0; lra.
rewrite count_next; cbn [factors].
destruct (theta_range (S m)) as [t0 t1]. destruct (gamma_range (S m)) as [g0 g1].
pose proof (tx (S m)) as t2. pose proof (gx (S m)) as g2.
pose proof (factors_pos m) as fp. pose proof (count_pos m) as cp.
assert (a : (1 - x) * (1 - x) <= (1 - theta (S m)) * (1 - gamma (S m))) by nra.
assert (b : factors m * ((1 - x) * (1 - x)) <= factors m * ((1 - theta (S m)) * (1 - gamma (S m)))).
  rewrite !(Qmult_comm (factors m)); apply Qmult_le_compat_r; assumption.
assert (d : (1 - 2 * count m * x) * ((1 - x) * (1 - x)) <= factors m * ((1 - x) * (1 - x))).
  apply Qmult_le_compat_r; [exact IH|nra].
assert (e : 1 - 2 * (count m + 1) * x <= (1 - 2 * count m * x) * ((1 - x) * (1 - x))).
  assert (y : 0 <= count m * x) by (apply Qmult_le_0_compat; assumption).
  assert (z : (1 - 2 * count m * x) * ((1 - x) * (1 - x)) - (1 - 2 * (count m + 1) * x)
              == x * x + (count m * x) * (x * (4 - 2 * x))) by ring.
  assert (w : 0 <= (count m * x) * (x * (4 - 2 * x))).
    apply Qmult_le_0_compat; [exact y|]; apply Qmult_le_0_compat; lra.
  nra.
lra.
Qed.

Theorem printed_bound alpha beta n m :
  0 < alpha < 1 -> 0 < beta -> (0 < n)%nat -> (m <= n)%nat ->
  (forall j, theta j <= alpha / (10 * count n)) ->
  (forall j, gamma j <= alpha / (10 * count n)) ->
  eps == beta / (10 * count n) -> 0 <= opt m ->
  (1 - alpha) * (c * opt m) - beta <= value m.
Proof.
intros [al0 al1] be n0 mn tx gx ee om.
assert (n1 : 1 <= count n).
  unfold count; change 1 with (inject_Z 1); rewrite <- Zle_Qle; lia.
assert (mn' : count m <= count n) by (unfold count; rewrite <- Zle_Qle; lia).
pose proof (count_pos m) as cm.
assert (inv : forall y, y / (10 * count n) * count n == y / 10) by (intros; field; lra).
set (x := alpha / (10 * count n)) in *.
assert (xn : x * count n == alpha / 10) by apply inv.
assert (x0 : 0 <= x) by (unfold x, Qdiv; apply Qmult_le_0_compat; [lra|apply Qinv_le_0_compat; lra]).
assert (x1 : x <= 1).
  assert (x * 1 <= x * count n) by (rewrite !(Qmult_comm x); apply Qmult_le_compat_r; assumption).
  assert (alpha / 10 == alpha * (1 # 10)) by (unfold Qdiv; reflexivity). lra.
assert (fb : 1 - alpha <= factors m).
  pose proof (factors_bernoulli x m (conj x0 x1) tx gx) as fb.
  assert (count m * x <= count n * x) by (apply Qmult_le_compat_r; assumption).
  assert (alpha / 10 == alpha * (1 # 10)) by (unfold Qdiv; reflexivity).
  assert (count n * x == x * count n) by ring. lra.
assert (eb : count m * eps <= beta).
  assert (count m * eps <= count n * eps) by (apply Qmult_le_compat_r; assumption).
  assert (en : eps * count n == beta / 10) by (rewrite ee; apply inv).
  assert (beta / 10 == beta * (1 # 10)) by (unfold Qdiv; reflexivity).
  assert (count n * eps == eps * count n) by ring. lra.
pose proof (induction m) as main.
assert (co : 0 <= c * opt m) by (apply Qmult_le_0_compat; assumption).
assert ((1 - alpha) * (c * opt m) <= factors m * (c * opt m)) by (apply Qmult_le_compat_r; assumption).
assert (c * factors m * opt m == factors m * (c * opt m)) by ring.
lra.
Qed.

End Induction.

Print Assumptions induction.
Print Assumptions printed_bound.
