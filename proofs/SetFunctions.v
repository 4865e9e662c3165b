(* Monotone submodular functions of sets of tokens, with integer values.

   Tokens are the members of any finite type. Submodular means falling returns: what a token adds
   does not grow with the set it is added to. *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Sums.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section SetFunctions.

Variables (T : finType) (f : {set T} -> Z).
Implicit Types (S X Y U : {set T}) (u v x : T).

Definition nonnegative := forall X, (0 <= f X)%Z.
Definition monotone := forall X Y, X \subset Y -> (f X <= f Y)%Z.
Definition submodular := forall X Y x, X \subset Y -> (f (x |: Y) - f Y <= f (x |: X) - f X)%Z.

Hypothesis pos : nonnegative.
Hypothesis mono : monotone.
Hypothesis sub : submodular.

(* Many tokens add no more than the sum of what each adds alone. *)
Lemma add_list X (s : seq T) :
  (f (X :|: [set x in s]) <= f X + \Sum_(x <- s) (f (x |: X) - f X))%Z.
Proof.
elim: s => [|x s IH].
  rewrite big_nil Z.add_0_r; have -> : X :|: [set x in [::]] = X by apply/setP => y; rewrite !inE orbF.
  exact: Z.le_refl.
have -> : X :|: [set y in x :: s] = x |: (X :|: [set y in s]).
  by apply/setP => y; rewrite !inE orbCA.
rewrite big_cons; have := @sub _ _ x (subsetUl X [set y in s]).
by move: IH; sums.
Qed.

Lemma add_set X O : (f O <= f X + \Sum_(x <- enum (O :\: X)) (f (x |: X) - f X))%Z.
Proof.
apply: Z.le_trans (@add_list X (enum (O :\: X))); apply: mono.
by apply/subsetP => x xO; rewrite !inE mem_enum !inE xO andbT orbN.
Qed.

(* Taking tokens out one after the other costs at least the sum of taking each out alone. *)
Lemma drop_list U (s : seq T) : uniq s -> {subset s <= U} ->
  (\Sum_(v <- s) (f U - f (U :\ v)) <= f U - f (U :\: [set v in s]))%Z.
Proof.
elim: s => [|v s IH] /=.
  by move=> _ _; rewrite big_nil; have -> : U :\: [set v in [::]] = U; [apply/setP => y; rewrite !inE in_nil|lia].
move=> /andP[vs us] sU; rewrite big_cons.
have {}IH : (\Sum_(v <- s) (f U - f (U :\ v)) <= f U - f (U :\: [set v in s]))%Z.
  by apply: IH => // y ys; apply: sU; rewrite inE ys orbT.
have vU : v \in U by apply: sU; rewrite mem_head.
have e1 : U = v |: (U :\ v) by rewrite setD1K.
have e2 : U :\: [set y in s] = v |: (U :\: [set y in v :: s]).
  apply/setP => y; rewrite !inE; have [->|_] := eqVneq y v; last by [].
  by rewrite vs vU.
have ss : U :\: [set y in v :: s] \subset U :\ v.
  by apply/subsetP => y; rewrite !inE negb_or => /andP[/andP[-> _] ->].
have := @sub _ _ v ss; rewrite -e1 -e2; move: IH.
set c := f (U :\: [set y in s]); set d := f (U :\: [set y in v :: s]).
by move: (f U) (f (U :\ v)) c d => a b c d; sums.
Qed.

(* One removal is cheap: after a new token, some old one can go for a k-th of f(S). *)
Lemma cheap_removal S u k : #|S| = k -> 0 < k -> u \notin S ->
  exists2 v, v \in S & (Z.of_nat k * (f (u |: S) - f ((u |: S) :\ v)) <= f S)%Z.
Proof.
move=> Sk k0 uS; pose cheap v := Z.leb (Z.of_nat k * (f (u |: S) - f ((u |: S) :\ v))) (f S).
have [/hasP[v]|none] := boolP (has cheap (enum S)).
  by rewrite mem_enum => vS /Z.leb_spec0; exists v.
exfalso; have all_dear : (\Sum_(v <- enum S) (f S + 1) <=
    \Sum_(v <- enum S) (Z.of_nat k * (f (u |: S) - f ((u |: S) :\ v))))%Z.
  apply: sum_le => v vS _; move/hasPn: none => /(_ v vS) /Z.leb_spec0; lia.
rewrite sum_const sum_mul -cardE Sk in all_dear.
have out : (u |: S) :\: [set v in enum S] = [set u].
  apply/setP => y; rewrite !inE mem_enum; have [->|_] := eqVneq y u; first by rewrite (negbTE uS).
  by case: (y \in S).
have inU : {subset enum S <= u |: S} by move=> y; rewrite mem_enum inE orbC => ->.
have := drop_list (enum_uniq _) inU; rewrite out.
have := @sub _ _ u (sub0set S); rewrite setU0; have := @pos set0.
have : (0 < Z.of_nat k)%Z by case: (k) k0 => // k' _; lia.
move: all_dear; move: (\Sum_(v <- enum S) _)%Z => total; nia.
Qed.

End SetFunctions.
