(* T9, the twin of 16-shared-caches-are-submodular.md: parts 1 to 3.

   Modelled: tokens of a finite type; for part 1 a unit of H heads with integer scores a_h(s) >= 0 and
   one utility phi on the integers, nondecreasing, with falling increments (concave), phi(0) >= 0;
   for parts 2 and 3 any set function with the named properties. [greedy q S] says that the one-shot
   greedy can hold S after q additions, [held arrived S] that the one-swap greedy can hold S after the
   tokens [arrived]; ties are left open.

   Proved:
   - [heads_nonnegative], [heads_monotone], [heads_submodular]: part 1 for the function of the heads
     (not its remark on when f is modular);
   - [one_shot]: part 2, k^k (f(O) - f(S)) <= (k-1)^k (f(O) - f(empty)), which is the first inequality;
     that (1-1/k)^k <= 1/e is not proved here;
   - [one_swap]: part 3, f(O) <= k f(S).
   Parts 4 and 5 are instances; tests of the Markdown file check them. *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Sums SetFunctions.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section Heads.

Variables (T : finType) (H : nat) (a : nat -> T -> Z) (phi : Z -> Z).

Definition head_mass (h : nat) (X : {set T}) : Z := \Sum_(s <- enum X) a h s.
Definition unit_value (X : {set T}) : Z := \Sum_(0 <= h < H) phi (head_mass h X).

Hypothesis a_pos : forall h s, (0 <= a h s)%Z.
Hypothesis phi_grows : forall x y, (0 <= x <= y)%Z -> (phi x <= phi y)%Z.
Hypothesis phi_falls : forall x y d, (0 <= x <= y)%Z -> (0 <= d)%Z ->
  (phi (y + d) - phi y <= phi (x + d) - phi x)%Z.
Hypothesis phi_start : (0 <= phi 0)%Z.

Lemma head_mass_ge0 h X : (0 <= head_mass h X)%Z.
Proof. by apply: sum_ge0. Qed.

Lemma head_mass_sub h (X Y : {set T}) : X \subset Y -> (head_mass h X <= head_mass h Y)%Z.
Proof.
move=> XY; rewrite /head_mass (@sum_sub_seq _ (enum X) (enum Y)) ?enum_uniq //.
  have : (0 <= \Sum_(s <- enum Y | s \notin enum X) a h s)%Z by apply: sum_ge0.
  by sums.
by move=> s; rewrite !mem_enum; apply: (subsetP XY).
Qed.

Lemma head_mass_add h (X : {set T}) x : x \notin X ->
  head_mass h (x |: X) = (head_mass h X + a h x)%Z.
Proof.
move=> xX; rewrite /head_mass.
have p : perm_eq (enum (x |: X)) (x :: enum X).
  apply: uniq_perm; rewrite /= ?enum_uniq ?mem_enum ?xX //.
  by move=> s; rewrite inE !mem_enum !inE.
by rewrite (perm_big _ p) big_cons Z.add_comm.
Qed.

Theorem heads_nonnegative : nonnegative unit_value.
Proof.
move=> X; apply: sum_ge0 => h _ _; have := @head_mass_ge0 h X => g.
by have := @phi_grows 0 (head_mass h X); lia.
Qed.

Theorem heads_monotone : monotone unit_value.
Proof.
move=> X Y XY; apply: sum_le => h _ _; apply: phi_grows.
by split; [apply: head_mass_ge0|apply: head_mass_sub].
Qed.

Theorem heads_submodular : submodular unit_value.
Proof.
move=> X Y x XY; have [xY|xY] := boolP (x \in Y).
  have -> : x |: Y = Y by apply/setUidPr; rewrite sub1set.
  rewrite Z.sub_diag; apply/Z.le_0_sub; apply: heads_monotone; exact: subsetUr.
have xX : x \notin X by apply: contra xY; apply: (subsetP XY).
rewrite /unit_value -!sum_sub; apply: sum_le => h _ _.
rewrite !head_mass_add //; apply: phi_falls => //.
by split; [apply: head_mass_ge0|apply: head_mass_sub].
Qed.

End Heads.

Section Greedy.

Variables (T : finType) (f : {set T} -> Z) (k : nat).
Hypothesis mono : monotone f.
Hypothesis sub : submodular f.

Inductive greedy : nat -> {set T} -> Prop :=
| Empty : greedy 0 set0
| Add q S u : greedy q S -> (forall x, (f (x |: S) <= f (u |: S))%Z) -> greedy q.+1 (u |: S).

Theorem one_shot q S (O : {set T}) : greedy q S -> #|O| <= k -> 0 < k ->
  (Z.of_nat k ^ Z.of_nat q * (f O - f S) <= (Z.of_nat k - 1) ^ Z.of_nat q * (f O - f set0))%Z.
Proof.
move=> run Ok k0; have kp : (0 < Z.of_nat k)%Z by case: (k) k0 => // m _; lia.
elim: run => [|{}q {}S u _ IH best]; first by rewrite -[Z.of_nat 0]/0%Z !Z.pow_0_r; lia.
have part : (f O - f S <= Z.of_nat k * (f (u |: S) - f S))%Z.
  have := @add_set _ f mono sub S O.
  have le : (\Sum_(x <- enum (O :\: S)) (f (x |: S) - f S) <=
             \Sum_(x <- enum (O :\: S)) (f (u |: S) - f S))%Z.
    by apply: sum_le => x _ _; have := best x; move: (f _) (f _) (f S) => v w z; lia.
  rewrite sum_const -cardE in le.
  have few : (Z.of_nat #|O :\: S| <= Z.of_nat k)%Z.
    by apply: leZ; apply: leq_trans Ok; apply: subset_leq_card; apply: subsetDl.
  have up : (f S <= f (u |: S))%Z by apply: mono; apply: subsetUr.
  move: le; set s := (\Sum_(x <- enum (O :\: S)) (f (x |: S) - f S))%Z.
  have paid : (Z.of_nat #|O :\: S| * (f (u |: S) - f S) <= Z.of_nat k * (f (u |: S) - f S))%Z.
    by apply: Z.mul_le_mono_nonneg_r => //; lia.
  by lia.
rewrite Nat2Z.inj_succ !Z.pow_succ_r; try exact: Zle_0_nat.
have step : (Z.of_nat k * (f O - f (u |: S)) <= (Z.of_nat k - 1) * (f O - f S))%Z by lia.
have p1 : (0 <= Z.of_nat k ^ Z.of_nat q)%Z by apply: Z.pow_nonneg; lia.
have h1 : (Z.of_nat k ^ Z.of_nat q * (Z.of_nat k * (f O - f (u |: S))) <=
           Z.of_nat k ^ Z.of_nat q * ((Z.of_nat k - 1) * (f O - f S)))%Z.
  exact: Z.mul_le_mono_nonneg_l.
have h2 : ((Z.of_nat k - 1) * (Z.of_nat k ^ Z.of_nat q * (f O - f S)) <=
           (Z.of_nat k - 1) * ((Z.of_nat k - 1) ^ Z.of_nat q * (f O - f set0)))%Z.
  by apply: Z.mul_le_mono_nonneg_l => //; lia.
by lia.
Qed.

Inductive held : {set T} -> {set T} -> Prop :=
| Start : held set0 set0
| Enter X S u : held X S -> u \notin X -> #|S| < k -> held (u |: X) (u |: S)
| Drop X S u w : held X S -> u \notin X -> #|S| = k -> w \in u |: S ->
    (forall v, v \in u |: S -> (f ((u |: S) :\ v) <= f ((u |: S) :\ w))%Z) ->
    held (u |: X) ((u |: S) :\ w).

Hypothesis pos : nonnegative f.

Lemma singles X S : 0 < k -> held X S ->
  [/\ S \subset X, #|S| <= k & forall z, z \in X -> (f [set z] <= f S)%Z].
Proof.
move=> k0; elim=> [|{}X {}S u _ [SX Sk one] uX small|{}X {}S u w _ [SX Sk one] uX full wG best].
- by split; rewrite ?cards0 ?sub0set // => z; rewrite inE.
- split; [exact: setUS|by rewrite cardsU1 (leq_trans (leq_add (leq_b1 _) (leqnn _)))|].
  move=> z; rewrite !inE => /orP[/eqP->|zX]; first by apply: mono; apply: subsetUl.
  by apply: Z.le_trans (one z zX) _; apply: mono; apply: subsetUr.
have uS : u \notin S by apply: contra uX; apply: (subsetP SX).
have G : #|u |: S| = k.+1 by rewrite cardsU1 uS full.
split.
- by apply/subsetP => y; rewrite !inE => /andP[_ /orP[->//|/(subsetP SX)->]]; rewrite orbT.
- by move: G; rewrite (cardsD1 w) wG add1n => -[->].
move=> z; rewrite !inE => /orP[/eqP->|zX].
  have /card_gt0P[v vS] : 0 < #|S| by rewrite full.
  apply: Z.le_trans (best v _); last by rewrite inE vS orbT.
  apply: mono; rewrite sub1set !inE eqxx /= andbT.
  by apply: contraNneq uS => ->.
apply: Z.le_trans (one z zX) _; apply: Z.le_trans (best u _); last by rewrite !inE eqxx.
by apply: mono; rewrite subsetD1 subsetUr uS.
Qed.

Theorem one_swap arrived S (O : {set T}) :
  held arrived S -> O \subset arrived -> #|O| <= k -> 0 < k -> (f O <= Z.of_nat k * f S)%Z.
Proof.
move=> run OX Ok k0; have [_ _ one] := singles k0 run.
have kp : (0 < Z.of_nat k)%Z by case: (k) k0 => // m _; lia.
have parts := @add_set _ f mono sub set0 O; rewrite setD0 in parts.
have each : (\Sum_(x <- enum O) (f (x |: set0) - f set0) <= \Sum_(x <- enum O) (f S - f set0))%Z.
  apply: sum_le => x; rewrite mem_enum setU0 => xO _.
  by have := one x (subsetP OX x xO); move: (f _) (f S) => v w; lia.
rewrite sum_const -cardE in each.
have few : (Z.of_nat #|O| <= Z.of_nat k)%Z by apply: leZ.
have z0 := @pos set0; have zS : (f set0 <= f S)%Z by apply: mono; apply: sub0set.
have [O0|On] := posnP #|O|.
  by move/eqP: O0; rewrite cards_eq0 => /eqP->; nia.
have m1 : (1 <= Z.of_nat #|O|)%Z by apply: (leZ On).
move: parts each; set s := (\Sum_(x <- enum O) (f (x |: set0) - f set0))%Z; move: s.
move: (Z.of_nat #|O|) few m1 => m few m1 s parts each.
have h1 : (m * f S <= Z.of_nat k * f S)%Z by apply: Z.mul_le_mono_nonneg_r => //; lia.
have h2 : (1 * f set0 <= m * f set0)%Z by apply: Z.mul_le_mono_nonneg_r => //; lia.
lia.
Qed.

End Greedy.

Print Assumptions heads_nonnegative.
Print Assumptions heads_monotone.
Print Assumptions heads_submodular.
Print Assumptions one_shot.
Print Assumptions one_swap.
