/**
 * Ends the output of a test run: prints the number of crash points, lists the skipped tests, then prints
 * `N passed, N failed` (and `, N skipped` if there are any) on the last line, without colour. The file that
 * SLUICE_CRASH_POINTS names gets the number of crash points, too.
 *
 * Failed tests, files that do not load, suites whose hooks throw and unhandled errors all count as failed. The line is
 * written at process exit, so that nothing follows it.
 */
import { writeFileSync, writeSync } from 'node:fs'
import type { Reporter, SerializedError, TestModule, TestRunEndReason, TestSuite } from 'vitest/node'

interface Tally {
  passed: number
  failed: number
  skipped: string[]
  /** Number of crash points of each file that has any. */
  readonly crashPoints: Map<string, number>
}

export default class TallyReporter implements Reporter {
  #tally: Tally | undefined

  onInit(): void {
    process.once('exit', () => {
      if (this.#tally !== undefined) writeSync(1, format(this.#tally))
    })
  }

  onTestRunEnd(
    modules: readonly TestModule[],
    unhandledErrors: readonly SerializedError[],
    _reason: TestRunEndReason,
  ): void {
    const tally: Tally = { passed: 0, failed: unhandledErrors.length, skipped: [], crashPoints: new Map() }
    for (const module of modules) count(module, tally)
    const { SLUICE_CRASH_POINTS: file } = process.env
    if (file !== undefined) writeFileSync(file, String(sumOf(tally.crashPoints)))
    this.#tally = tally
  }
}

function count(module: TestModule, tally: Tally): void {
  if (hasOwnError(module)) tally.failed++
  for (const suite of module.children.allSuites()) {
    if (hasOwnError(suite)) tally.failed++
  }
  for (const test of module.children.allTests()) {
    const { state } = test.result()
    const { crashPoints } = test.meta()
    if (crashPoints !== undefined) {
      const file = module.relativeModuleId
      tally.crashPoints.set(file, (tally.crashPoints.get(file) ?? 0) + crashPoints)
    }
    if (state === 'passed') tally.passed++
    else if (state === 'failed') tally.failed++
    else tally.skipped.push(`${module.relativeModuleId} > ${test.fullName}`)
  }
}

function hasOwnError(part: TestModule | TestSuite): boolean {
  return part.errors().length > 0
}

function sumOf(counts: ReadonlyMap<string, number>): number {
  return [...counts.values()].reduce((sum, count) => sum + count, 0)
}

function format({ passed, failed, skipped, crashPoints }: Tally): string {
  const parts = [...crashPoints].map(([file, count]) => `${count} in ${file}`)
  const lines = parts.length > 0 ? [`${sumOf(crashPoints)} crash points: ${parts.join(', ')}`] : []
  lines.push(...skipped.map((name) => `SKIPPED ${name}`))
  const skippedPart = skipped.length > 0 ? `, ${skipped.length} skipped` : ''
  return [...lines, `${passed} passed, ${failed} failed${skippedPart}`, ''].join('\n')
}
