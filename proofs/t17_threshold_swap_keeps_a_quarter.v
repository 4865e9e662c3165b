(* M1, the twin of 17-threshold-swap-keeps-a-quarter.md: a swap rule with a threshold keeps a quarter.

   Modelled: a fixed nonnegative monotone submodular function f of sets of tokens, with integer
   values; tokens that arrive one by one, each once; the rule: while fewer than k tokens are held a new one
   enters; then the best swap is made if it gains at least c f(S)/k, with c = a/b, and otherwise the new
   token goes. Which of several best swaps is made is left open. [reached arrived S] says
   that the rule can hold S after the tokens [arrived].

   Proved, for any set O of at most k tokens that have arrived:
   - [threshold_swap]: a b f(O) <= (a + b)^2 f(S), which is f(S) >= f(O) / (2 + c + 1/c);
   - [a_quarter]: for c = 1, f(O) <= 4 f(S). *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Sums SetFunctions.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section ThresholdSwap.

Variables (T : finType) (f : {set T} -> Z) (k : nat) (a b : Z).

Definition gain (S : {set T}) (u v : T) : Z := (f ((u |: S) :\ v) - f S)%Z.

Inductive reached : {set T} -> {set T} -> Prop :=
| Start : reached set0 set0
| Enter X S u : reached X S -> u \notin X -> #|S| < k -> reached (u |: X) (u |: S)
| Swap X S u v : reached X S -> u \notin X -> #|S| = k -> v \in S ->
    (forall v', v' \in S -> (gain S u v' <= gain S u v)%Z) ->
    (a * f S <= b * Z.of_nat k * gain S u v)%Z -> reached (u |: X) ((u |: S) :\ v)
| TurnAway X S u : reached X S -> u \notin X -> #|S| = k ->
    (forall v, v \in S -> (b * Z.of_nat k * gain S u v < a * f S)%Z) -> reached (u |: X) S.

Hypothesis pos : nonnegative f.
Hypothesis mono : monotone f.
Hypothesis sub : submodular f.
Hypothesis k_pos : 0 < k.
Hypothesis a_pos : (0 < a)%Z.
Hypothesis b_pos : (0 < b)%Z.

Lemma kZ : (0 < Z.of_nat k)%Z.
Proof. by case: k k_pos => // m _; lia. Qed.

Definition added (u : T) (X : {set T}) : Z := (f (u |: X) - f X)%Z.

(* What a token adds to a full cache is bounded by the gain of some swap. *)
Lemma adds_at_most (S : {set T}) u : #|S| = k -> u \notin S ->
  exists2 v, v \in S & (Z.of_nat k * added u S <= f S + Z.of_nat k * gain S u v)%Z.
Proof.
move=> Sk uS; have [v vS h] := cheap_removal pos sub Sk k_pos uS.
by exists v => //; move: h; rewrite /added /gain; move: (f _) (f S) (f _) => x y z; lia.
Qed.

(* A is all that was ever held. *)
Record invariant (X S A : {set T}) : Prop := Invariant {
  held_then : S \subset A;
  arrived_then : A \subset X;
  small : #|S| <= k;
  value_of_all : (a * f A <= (a + b) * f S)%Z;
  turned_away : forall o, o \in X -> o \notin A ->
    (b * Z.of_nat k * added o A <= (a + b) * f S)%Z
}.

Lemma less_added u (X Y : {set T}) : X \subset Y -> (added u Y <= added u X)%Z.
Proof. by move=> XY; apply: sub. Qed.

Lemma still x y v w : (y <= x)%Z -> (v <= w)%Z ->
  (b * Z.of_nat k * x <= (a + b) * v)%Z -> (b * Z.of_nat k * y <= (a + b) * w)%Z.
Proof.
have kp := kZ => yx vw h.
have l : (b * Z.of_nat k * y <= b * Z.of_nat k * x)%Z by apply: Z.mul_le_mono_nonneg_l => //; nia.
have r : ((a + b) * v <= (a + b) * w)%Z by apply: Z.mul_le_mono_nonneg_l => //; lia.
lia.
Qed.

Lemma keeps X S : reached X S ->
  exists2 A, invariant X S A & #|S| < k -> A = S.
Proof.
have kp := kZ.
elim=> [|{}X {}S u _ [A inv young] uX Sk|{}X {}S u v _ [A inv _] uX Sk vS best good|{}X {}S u _ [A inv _] uX Sk bad].
- exists set0 => //; split=> //; rewrite ?cards0 //; last by move=> o; rewrite inE.
  by have := @pos set0; nia.
- have AS := young Sk; rewrite {}AS in inv; exists (u |: S) => //.
  case: inv => _ SX _ _ away.
  have up : (f S <= f (u |: S))%Z by apply: mono; apply: subsetUr.
  split=> //; first exact: setUS.
  + by rewrite cardsU1 (leq_trans (leq_add (leq_b1 _) (leqnn _))).
  + by have := @pos (u |: S); nia.
  move=> o; rewrite !inE negb_or => /orP[/eqP->|oX]; first by rewrite eqxx.
  move=> /andP[_ oS]; apply: (still _ up (away o oX oS)).
  by apply: less_added; apply: subsetUr.
- case: inv => SA AX _ all away.
  have uS : u \notin S by apply: contra uX => uS; apply: (subsetP AX); apply: (subsetP SA).
  have [w wS add] := adds_at_most Sk uS; have bw := best w wS.
  have lA : (f (u |: A) - f A <= added u S)%Z := @less_added u _ _ SA.
  have fS := @pos S.
  set G := gain S u v in bw good *.
  have G0 : (0 <= G)%Z by nia.
  have fS' : (f ((u |: S) :\ v) = f S + G)%Z by rewrite /G /gain; lia.
  have size' : #|(u |: S) :\ v| = k.
    have : #|u |: S| = k.+1 by rewrite cardsU1 uS Sk.
    by rewrite (cardsD1 v) !inE vS orbT /= add1n => -[].
  exists (u |: A); last by rewrite size' ltnn.
  split; rewrite ?size' ?fS' //; [|exact: setUS| |].
  + by apply/subsetP => y; rewrite !inE => /andP[_ /orP[->//|/(subsetP SA)->]]; rewrite orbT.
  + move: lA add bw good all; move: (f (u |: A)) (f A) (added u S) (gain S u w) (f S) G G0 {fS'} fS.
    move=> uA vA ad gw y H H0 y0 lA add bw good all.
    have h1 : (Z.of_nat k * ad <= y + Z.of_nat k * H)%Z by nia.
    have h2 : (Z.of_nat k * (a * ad) <= Z.of_nat k * ((a + b) * H))%Z by nia.
    have h3 : (a * ad <= (a + b) * H)%Z by apply/(Z.mul_le_mono_pos_l _ _ _ kp).
    have h4 : (a * uA <= a * vA + a * ad)%Z by nia.
    by lia.
  move=> o; rewrite !inE negb_or => /orP[/eqP->|oX]; first by rewrite eqxx.
  move=> /andP[_ oA]; apply: (still _ _ (away o oX oA)); last by lia.
  by apply: less_added; apply: subsetUr.
case: inv => SA AX _ all away; exists A; last by rewrite Sk ltnn.
have uS : u \notin S by apply: contra uX => uS; apply: (subsetP AX); apply: (subsetP SA).
split; rewrite ?Sk //; first by apply: subset_trans AX (subsetUr _ _).
move=> o; rewrite !inE => /orP[/eqP-> _|]; last exact: away.
have [w wS add] := adds_at_most Sk uS; have low := bad w wS.
have le := @less_added u _ _ SA; apply: (still le (Z.le_refl (f S))).
by move: add low; move: (added u S) (gain S u w) (f S) => x g v; nia.
Qed.

Theorem threshold_swap arrived S (O : {set T}) :
  reached arrived S -> O \subset arrived -> #|O| <= k ->
  (a * b * f O <= (a + b) * (a + b) * f S)%Z.
Proof.
move=> run OX Ok; have [A [SA AX _ all away] _] := keeps run; have kp := kZ.
have whole := @add_set _ f mono sub A O.
have each : (\Sum_(x <- enum (O :\: A)) (b * Z.of_nat k * added x A)
             <= \Sum_(x <- enum (O :\: A)) ((a + b) * f S))%Z.
  apply: sum_le => x; rewrite mem_enum !inE => /andP[xA xO] _.
  by apply: away => //; apply: (subsetP OX).
rewrite sum_const sum_mul -cardE in each.
have few : (Z.of_nat #|O :\: A| <= Z.of_nat k)%Z.
  by apply: leZ; apply: leq_trans Ok; apply: subset_leq_card; apply: subsetDl.
have fS := @pos S; move: whole each; rewrite /added.
set s := (\Sum_(x <- enum (O :\: A)) (f (x |: A) - f A))%Z; move: few.
move: (Z.of_nat #|O :\: A|) s => m s few whole each.
have e1 : (b * Z.of_nat k * s <= Z.of_nat k * ((a + b) * f S))%Z.
  apply: Z.le_trans each _; apply: Z.mul_le_mono_nonneg_r => //; nia.
have e2 : (b * s <= (a + b) * f S)%Z by nia.
have f1 : (a * b * f O <= a * b * (f A + s))%Z by apply: Z.mul_le_mono_nonneg_l => //; nia.
have f2 : (b * (a * f A) <= b * ((a + b) * f S))%Z by apply: Z.mul_le_mono_nonneg_l => //; lia.
have f3 : (a * (b * s) <= a * ((a + b) * f S))%Z by apply: Z.mul_le_mono_nonneg_l => //; lia.
lia.
Qed.

End ThresholdSwap.

Corollary a_quarter (T : finType) (f : {set T} -> Z) k arrived S (O : {set T}) :
  nonnegative f -> monotone f -> submodular f -> 0 < k ->
  reached f k 1 1 arrived S -> O \subset arrived -> #|O| <= k -> (f O <= 4 * f S)%Z.
Proof.
by move=> pos mono sub k0 run OX Ok; have := threshold_swap pos mono sub k0 Z.lt_0_1 Z.lt_0_1 run OX Ok; lia.
Qed.

Print Assumptions threshold_swap.
Print Assumptions a_quarter.
