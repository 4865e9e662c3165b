(* Sums of integers over lists and ranges, and the few facts about them that the proofs use.
   An integer is Coq's Z; a range [a <= i < b] is one of natural numbers. *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Canonical addZ_monoid := Monoid.Law Z.add_assoc Z.add_0_l Z.add_0_r.
Canonical addZ_comoid := Monoid.ComLaw Z.add_comm.

Notation "\Sum_ ( i <- r | P ) F" := (\big[Z.add/0%Z]_(i <- r | P%B) F%Z)
  (at level 41, F at level 41, i, r at level 50, format "'[' \Sum_ ( i  <-  r  |  P ) '/  '  F ']'").
Notation "\Sum_ ( i <- r ) F" := (\big[Z.add/0%Z]_(i <- r) F%Z)
  (at level 41, F at level 41, i, r at level 50, format "'[' \Sum_ ( i  <-  r ) '/  '  F ']'").
Notation "\Sum_ ( a <= i < b | P ) F" := (\big[Z.add/0%Z]_(a <= i < b | P%B) F%Z)
  (at level 41, F at level 41, i, a, b at level 50,
   format "'[' \Sum_ ( a  <=  i  <  b  |  P ) '/  '  F ']'").
Notation "\Sum_ ( a <= i < b ) F" := (\big[Z.add/0%Z]_(a <= i < b) F%Z)
  (at level 41, F at level 41, i, a, b at level 50,
   format "'[' \Sum_ ( a  <=  i  <  b ) '/  '  F ']'").

Section Linear.

Variable I : Type.
Implicit Types (r : seq I) (P : pred I) (f g : I -> Z).

Lemma sum_add r P f g :
  \Sum_(i <- r | P i) (f i + g i) = (\Sum_(i <- r | P i) f i + \Sum_(i <- r | P i) g i)%Z.
Proof. exact: big_split. Qed.

Lemma sum_opp r P f : \Sum_(i <- r | P i) (- f i) = (- \Sum_(i <- r | P i) f i)%Z.
Proof. by elim/big_rec2: _ => // i y1 y2 _ ->; lia. Qed.

Lemma sum_sub r P f g :
  \Sum_(i <- r | P i) (f i - g i) = (\Sum_(i <- r | P i) f i - \Sum_(i <- r | P i) g i)%Z.
Proof. by rewrite -[RHS]Z.add_opp_r -sum_opp -sum_add. Qed.

Lemma sum_mul r P f c : \Sum_(i <- r | P i) (c * f i) = (c * \Sum_(i <- r | P i) f i)%Z.
Proof. by elim/big_rec2: _ => [|i y1 y2 _ ->]; lia. Qed.

Lemma sum_const r c : \Sum_(i <- r) c = (Z.of_nat (size r) * c)%Z.
Proof.
elim: r => [|i r IH]; first by rewrite big_nil.
by rewrite big_cons IH -[size (i :: r)]/((size r).+1); lia.
Qed.

End Linear.

Section Sums.

Variable I : eqType.
Implicit Types (r s : seq I) (P Q : pred I) (f g : I -> Z).

Lemma sum_le r P f g : (forall i, i \in r -> P i -> (f i <= g i)%Z) ->
  (\Sum_(i <- r | P i) f i <= \Sum_(i <- r | P i) g i)%Z.
Proof.
move=> h; rewrite big_seq_cond [X in (_ <= X)%Z]big_seq_cond.
by elim/big_ind2: _ => [|*|i /andP[]]; [lia|lia|apply: h].
Qed.

Lemma sum_ge0 r P f : (forall i, i \in r -> P i -> (0 <= f i)%Z) -> (0 <= \Sum_(i <- r | P i) f i)%Z.
Proof.
move=> h; rewrite big_seq_cond.
by elim/big_ind: _ => [|*|i /andP[]]; [lia|lia|apply: h].
Qed.

Lemma sum_sub_seq r s f : uniq r -> uniq s -> {subset r <= s} ->
  \Sum_(i <- s) f i = (\Sum_(i <- r) f i + \Sum_(i <- s | i \notin r) f i)%Z.
Proof.
move=> ur us rs; rewrite (bigID (mem r)) /=; congr (_ + _)%Z.
rewrite -big_filter; apply: perm_big; apply: uniq_perm; rewrite ?filter_uniq //.
by move=> i; rewrite mem_filter; case ir: (i \in r) => //=; rewrite rs.
Qed.

End Sums.

(* Comparisons of natural numbers, for lia. *)
Lemma leZ m n : (m <= n)%N -> (Z.of_nat m <= Z.of_nat n)%Z.
Proof. by move/leP; lia. Qed.

(* Linear arithmetic that treats each sum as one unknown. *)
Ltac sums :=
  repeat match goal with
  | |- context [BigOp.bigop ?z ?r ?F] =>
      let x := fresh "sum" in set x := (BigOp.bigop z r F); clearbody x
  end; lia.
